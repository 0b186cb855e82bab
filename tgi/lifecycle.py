"""Where the server is between its first second and its last: one object, written by whoever makes progress
and read by `/health`, the log and the terminal."""

import enum
import time

import attrs

TELLING = 2
"""From so many on, what is done tells how long the rest takes; before, an expectation is better."""


class Phase(enum.Enum):
    """The states of the server, in order."""

    STARTING = "starting"
    """The port is open; every route but `/metrics` and `/health` answers 503."""
    READY = "ready"
    DRAINING = "draining"
    """Running requests finish; new ones get 503."""


@attrs.define(eq=False)
class Lifecycle:
    """The phase, and while starting the progress of the present stage."""

    phase: Phase = Phase.STARTING
    stage: str = "starting"
    """What is being done, for people: "loading weights", "warming up"."""
    done: int = 0
    total: int = 0
    """Of `done`; 0 where it is not known."""
    detail: str = ""
    """What of the stage comes next, for people."""
    expected: float | None = None
    """Seconds that the stage takes by all that is known before it begins."""
    stage_started: float = attrs.field(factory=time.monotonic)

    def enter(self, stage: str, total: int = 0, expected: float | None = None) -> None:
        """Begin a stage of the start."""
        self.stage, self.done, self.total, self.detail, self.expected = stage, 0, total, "", expected
        self.stage_started = time.monotonic()

    def seconds_left(self) -> float | None:
        """Estimate for the present stage, in seconds; None where nothing is known yet."""
        if not self.total:
            return None
        if self.expected is not None and self.done < TELLING:
            return self.expected * (self.total - self.done) / self.total
        if not self.done:
            return None
        return (time.monotonic() - self.stage_started) * (self.total - self.done) / self.done
