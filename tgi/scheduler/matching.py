"""Shows matchers the tokens that their sequences have got, in threads: a mask takes up to milliseconds.

Nobody waits for it but the sequence itself, which is not planned while its matcher is behind.
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
    """Threads that work off one queue and end when it is empty; the event loop hears of what is done at once.

    Threads, and not one per token: handing a call to a thread costs the event loop more than most masks take.
    """

    _nursery: trio.Nursery
    _on_done: Callable[[Sequence, GrammarError | None], None]
    """Called on the event loop."""
    pending: int = attrs.field(default=0, init=False)
    """Tokens that have been given to `start` and not been told of."""
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

    def stop(self) -> None:
        """What has not been begun is left; to be called when the nursery is cancelled."""
        self._todo.clear()

    async def wait(self, seconds: float) -> None:
        """Until nothing is pending, but no longer than that."""
        if self.pending:
            with trio.move_on_after(seconds):
                await self._idle.wait()

    async def _work(self) -> None:
        while self._todo:
            await trio.to_thread.run_sync(self._advance_all, abandon_on_cancel=True, limiter=self._limiter)
        self._tasks -= 1

    def _advance_all(self) -> None:
        """In a thread."""
        with suppress(IndexError):  # the queue is empty
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
