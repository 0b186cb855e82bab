"""Measured cost of steps: seconds = step + token x query tokens, learned from the steps as they come."""

import attrs

WEIGHT = 0.1
"""Weight of the latest step in the running averages."""


@attrs.define(eq=False)
class StepCosts:
    """Two running averages: one from steps without chunks of prompts, one from later steps with chunks."""

    step: float = 0.0
    """Seconds of a step apart from its query tokens; 0: not measured."""
    token: float = 0.0
    """Seconds of each query token; 0: not measured."""

    def add(self, tokens: int, chunks: bool, seconds: float) -> None:
        """Learn from a step that took `seconds` for `tokens` query tokens."""
        if chunks and self.step:
            measured = max(seconds - self.step, 0.0) / tokens
            self.token += (WEIGHT if self.token else 1.0) * (measured - self.token)
        elif not chunks:
            measured = max(seconds - self.token * tokens, 0.0)
            self.step += (WEIGHT if self.step else 1.0) * (measured - self.step)

    def seconds(self, tokens: int) -> float:
        """Expect a duration; 0: not measured."""
        return self.step + self.token * tokens if self.step else 0.0

    def doubling_tokens(self, tokens: int) -> int:
        """Return how many query tokens, beside `tokens`, take as long as a step of those alone.

        0: not measured.
        """
        return int(self.seconds(tokens) / self.token) if self.step and self.token else 0
