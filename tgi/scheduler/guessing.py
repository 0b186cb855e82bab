"""Guesses of a sequence's next tokens by looking them up in its own text ("prompt lookup").

Summaries, edits of code and answers about a document repeat runs of their prompt. The tokens that followed
the last occurrence of the last few tokens are guessed to follow again; one step computes all of them, and
those that the sampler gives as well are kept. So guesses change the speed, and no token.
"""

import attrs

MATCH = 3
"""Number of tokens that must occur before."""
MAX_PAUSE = 64
"""Maximum tokens without a guess after guesses that were wrong."""


@attrs.define(eq=False)
class Guesser:
    """Guesses for one sequence: fewer after wrong ones, and none for a while after several."""

    most: int
    """Maximum tokens of a guess."""
    _limit: int = attrs.field(init=False)
    """Maximum tokens of the next guess."""
    _followers: dict[tuple[int, ...], int] = attrs.field(factory=dict)
    """Index of the token after the last occurrence of MATCH tokens."""
    _learned: int = MATCH
    """Number of tokens whose index is in `_followers`, or that have too few before them."""
    _wrong: int = 0
    """Number of guesses in a row of which no token was right."""
    _resume: int = 0
    """Length that the sequence must have for the next guess."""

    def __attrs_post_init__(self) -> None:
        self._limit = self.most

    def guess(self, tokens: list[int]) -> list[int]:
        """Return tokens that may follow `tokens`, all of the sequence so far; [] if nothing suggests any."""
        if len(tokens) < self._resume:
            return []
        for index in range(self._learned, len(tokens)):
            self._followers[tuple(tokens[index - MATCH : index])] = index
        self._learned = max(self._learned, len(tokens))
        place = self._followers.get(tuple(tokens[-MATCH:]))
        if place is None:
            return []
        guessed = tokens[place : place + self._limit]
        for index in range(self._limit - len(guessed)):
            guessed.append(guessed[index])  # what repeats with a short period goes on repeating
        return guessed

    def learn(self, length: int, guessed: int, right: int) -> None:
        """Take note that `right` of the tokens that were guessed for a sequence of that length were right."""
        if right == guessed:
            self._limit = min(self.most, 2 * self._limit)
        else:
            self._limit = max(right, 1)
        self._wrong = 0 if right else self._wrong + 1
        self._resume = 0 if right else length + min(2 ** min(self._wrong, 6), MAX_PAUSE)
