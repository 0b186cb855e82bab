"""A process that tries whether grammars can be compiled and followed with little time and memory.

`python -m tgi.text.grammar_trial`, a child of `tgi.child`, reads the vocabulary once and forks for each
grammar: the fork may run out of time, memory or stack. The parent sends `Start`, then `GrammarSpec`s, and
receives a `Verdict` for each, all as JSON.
"""

import contextlib
import os
import random
import resource
import signal
from typing import TypeVar

import msgspec
import tokenizers

from tgi.parent import Parent

from .grammar import GrammarCompiler, GrammarError, GrammarSpec, Matcher
from .tokenizer import Tokenizer

CPU_SECONDS = 1.0
"""Maximum CPU time for a grammar, so that a busy machine refuses no more than an idle one."""
CLOCK_SECONDS = 2.0
"""Maximum time for a grammar before it is given up without a verdict, because others wait."""
MEMORY = 128 << 20
"""Maximum bytes that the memory of the process may grow by."""
STACK = 1 << 20
"""Maximum bytes of the stack; the server's threads have 2 MiB or more."""
STEPS = 32
"""Number of tokens of a random text, because some grammars are cheap to compile but costly to follow."""

T = TypeVar("T")


class Start(msgspec.Struct, frozen=True):
    """The parts of a grammar compiler."""

    tokenizer: str
    """Text of tokenizer.json."""
    ends: list[int]
    vocab_size: int


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of the trial of one grammar."""

    error: str = ""
    """The reason why the grammar cannot be used; "" if it can."""
    grown: int = 0
    """Bytes that the memory of the process grew by."""
    late: bool = False
    """Whether the machine was too busy for a verdict."""


def main() -> None:
    """Serve until the parent has no more to send, or has gone."""
    os.nice(10)
    parent = Parent.of_this_process()  # without `leave_together`: a fork may have one thread only
    start = _receive(parent, Start)
    if start is None:
        return
    core = tokenizers.Tokenizer.from_str(start.tokenizer)
    compiler = GrammarCompiler(Tokenizer(core, (), start.ends), start.vocab_size)
    with contextlib.suppress(GrammarError):  # each grammar will raise it again
        compiler.load()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while spec := _receive(parent, GrammarSpec):
            parent.send(msgspec.json.encode(try_grammar(compiler, spec)))


def _receive(parent: Parent, kind: type[T]) -> T | None:
    payload = parent.receive()
    return None if payload is None else msgspec.json.decode(payload, type=kind)


def try_grammar(compiler: GrammarCompiler, spec: GrammarSpec) -> Verdict:
    """Compile and follow a grammar in a fork of this process, which must have only one thread."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            _limit()
            os.write(send, msgspec.json.encode(_try_here(compiler, spec)))
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    if answer:
        return msgspec.json.decode(answer, type=Verdict)
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if ended_by == signal.SIGALRM:
        return Verdict(late=True)
    if ended_by == signal.SIGPROF:
        return Verdict(f"it takes more than {CPU_SECONDS:g} s to compile")
    return Verdict("it is too complex to compile")


def _limit() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, STACK))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # standard error is kept in memory; panics need not be
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)


def _try_here(compiler: GrammarCompiler, spec: GrammarSpec) -> Verdict:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        matcher = compiler.compile(spec)
        _walk(matcher, sum(1 << end for end in compiler.ends))
    except GrammarError as error:
        return Verdict(str(error))
    return Verdict(grown=1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def _walk(matcher: Matcher, ends: int) -> None:
    rng = random.Random(0)
    for _ in range(STEPS):
        allowed = int.from_bytes(matcher.mask, "little") & ~ends
        if not allowed:
            return
        # Take the first allowed token from a random place on.
        start = rng.randrange(allowed.bit_length())
        rest = allowed >> start
        matcher.advance((rest & -rest).bit_length() - 1 + start)


if __name__ == "__main__":
    main()
