"""Compiled grammars: each is tried in a child process first, then compiled in a thread, and kept.

A request waits for another's grammar no longer than a trial takes, and no grammar ends the server.
"""

import logging
from collections import OrderedDict
from contextlib import suppress

import msgspec
import trio

from tgi.child import Child, start_child
from tgi.errors import ApiError, InternalError, Overloaded, ValidationError
from tgi.text.grammar import GrammarCompiler, GrammarError, GrammarSpec, Matcher
from tgi.text.grammar_trial import Start, Verdict

log = logging.getLogger(__name__)
COMMAND = ("-m", "tgi.text.grammar_trial")
TRIALS = 2
"""Maximum number of trials at once, each in a process that holds the vocabulary."""
CACHED_BYTES = 256 << 20
"""Maximum size of the grammars that are kept."""
LARGE_VOCABULARY = 32_000
"""Number of tokens from which on a process for trials takes seconds to start."""
_MIN_BYTES = 65_536
"""Minimum size that is assumed for a grammar."""


class Grammars:
    """A cache of compiled grammars. Close it with `aclose`."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._known: OrderedDict[GrammarSpec, tuple[Matcher | str, int]] = OrderedDict()
        """Matchers at the start of a text, or reasons why they have none, and sizes; latest use last."""
        self._size = 0
        self._idle: list[Child] = []
        self._closed = False
        self._trying = trio.CapacityLimiter(TRIALS)
        self._compiling = trio.CapacityLimiter(1)

    async def prepare(self) -> None:
        """Read the vocabulary before requests come, here and, if it is large, in a process for trials.

        llguidance holds the GIL meanwhile, for a second or more with 100,000 tokens.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_vocabulary)
            if self._compiler.vocab_size >= LARGE_VOCABULARY:
                with suppress(ApiError):  # each grammar fails with the same error later
                    await self.matcher(GrammarSpec("regex", "a"))

    async def _read_vocabulary(self) -> None:
        with suppress(GrammarError):
            await trio.to_thread.run_sync(self._compiler.load)

    async def matcher(self, spec: GrammarSpec) -> Matcher:
        """Return a matcher at the start of its text.

        Raises ValidationError for a grammar that cannot be used, Overloaded if the trial had no time.
        """
        if spec not in self._known:
            async with self._trying:
                if spec not in self._known:
                    self._keep(spec, *await self._compile(spec))
        self._known.move_to_end(spec)
        matcher, _ = self._known[spec]
        if isinstance(matcher, str):
            raise ValidationError(f"grammar is not valid: {matcher}")
        return matcher.fork()

    async def aclose(self) -> None:
        """End the processes. Nothing may be compiled afterwards."""
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()

    async def _compile(self, spec: GrammarSpec) -> tuple[Matcher | str, int]:
        size = _MIN_BYTES + len(spec.source)
        verdict = await self._try(spec)
        if verdict.late:
            raise Overloaded
        if verdict.error:
            return verdict.error, size
        try:
            matcher = await trio.to_thread.run_sync(self._compiler.compile, spec, limiter=self._compiling)
        except GrammarError as error:
            return str(error), size
        for remark in matcher.remarks:
            log.warning("grammar: %s", remark)
        return matcher, size + verdict.grown

    async def _try(self, spec: GrammarSpec) -> Verdict:
        for _ in range(2):  # an idle process may have ended
            process = self._idle.pop() if self._idle else await self._start()
            payload = None
            try:
                await _send(process, spec)
                payload = await process.receive()
                if payload is not None:
                    return msgspec.json.decode(payload, type=Verdict)
                log.warning("a process that tries grammars %s", await process.ending())
            finally:
                if payload is None or self._closed:  # it has ended, or is in the middle of an answer
                    await process.aclose()
                else:
                    self._idle.append(process)
        raise InternalError

    async def _start(self) -> Child:
        process = await start_child(*COMMAND)
        try:
            text = await trio.to_thread.run_sync(self._compiler.tokenizer_json)
            await _send(process, Start(text, self._compiler.ends, self._compiler.vocab_size))
        except BaseException:
            await process.aclose()
            raise
        return process

    def _keep(self, spec: GrammarSpec, matcher: Matcher | str, size: int) -> None:
        if spec not in self._known:  # unless another request was faster
            self._known[spec] = matcher, size
            self._size += size
        while self._size > CACHED_BYTES and len(self._known) > 1:
            _, (_, freed) = self._known.popitem(last=False)
            self._size -= freed


async def _send(process: Child, message: object) -> None:
    with suppress(trio.BrokenResourceError):  # it has ended, which `receive` finds out
        await process.send(msgspec.json.encode(message))
