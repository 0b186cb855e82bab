"""Advances grammar matchers in threads, as a mask takes up to milliseconds.

Only the sequence itself waits: it is not planned while its matcher is behind.
"""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import attrs
import trio

from tgi.text.grammar import GrammarError

from .sequence import Matcher, Sequence

THREADS = 4


@attrs.define(eq=False)
class Matching:
    """Threads that work off one queue and end when it is empty, reporting each token to the event loop.

    A thread takes many tokens, as handing over a call costs the event loop more than most masks take.
    """

    _nursery: trio.Nursery
    _on_done: Callable[[Sequence, GrammarError | None], None]
    """Called on the event loop with each sequence whose matcher has seen its token."""
    pending: int = attrs.field(default=0, init=False)
    """Number of tokens given to `start` that `_on_done` has not been called for."""
    _idle: trio.Event = attrs.field(factory=trio.Event, init=False)
    _tasks: int = attrs.field(default=0, init=False)
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(THREADS), init=False)
    _loop: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token, init=False)
    _todo: deque[tuple[Sequence, Matcher, int]] = attrs.field(factory=deque, init=False)
    _done: deque[tuple[Sequence, GrammarError | None]] = attrs.field(factory=deque, init=False)

    def start(self, sequences: Iterable[Sequence]) -> None:
        """Show each matcher the last token of its sequence."""
        if not self.pending:
            self._idle = trio.Event()
        for sequence in sequences:
            assert sequence.matcher is not None
            self._todo.append((sequence, sequence.matcher, sequence.tokens[-1]))
            self.pending += 1
        while self._tasks < min(THREADS, self.pending):
            self._tasks += 1
            self._nursery.start_soon(self._work)

    def stop(self) -> list[Sequence]:
        """Return the sequences whose tokens no thread has taken. Call when the nursery is cancelled.

        What a thread has taken is still reported.
        """
        left = []
        with suppress(IndexError):  # until the queue is empty
            while True:
                left.append(self._todo.popleft()[0])
        return left

    async def wait(self, seconds: float) -> None:
        """Wait for what is pending until nothing is, for at most `seconds`."""
        with trio.move_on_after(seconds):
            await self._idle.wait()

    async def _work(self) -> None:
        while self._todo:
            await trio.to_thread.run_sync(self._advance_all, abandon_on_cancel=True, limiter=self._limiter)
        self._tasks -= 1

    def _advance_all(self) -> None:
        """Work off the queue, in a thread."""
        with suppress(IndexError):  # until the queue is empty
            while True:
                sequence, matcher, token = self._todo.popleft()
                self._done.append((sequence, _advance(matcher, token)))
                self._loop.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        while self._done:
            sequence, error = self._done.popleft()
            self.pending -= 1
            self._on_done(sequence, error)
        if not self.pending:
            self._idle.set()


def _advance(matcher: Matcher, token: int) -> GrammarError | None:
    try:
        matcher.advance(token)
    except GrammarError as error:
        return error
    return None
