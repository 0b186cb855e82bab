"""Devices, sequences and schedules for tests, with defaults for everything a test does not care about."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from tgi.errors import ApiError
from tgi.limits import Limits
from tgi.plugins import DeviceSpec
from tgi.sampling import SamplingParams
from tgi.scheduler import Scheduler, Sequence, Token
from tgi.scheduler.allocator import BlockAllocator
from tgi.scheduler.blocks import BlockPool, Prefixes
from tgi.text.stopping import StoppingCriteria


def make_device(**changed: Any) -> DeviceSpec:
    """A device that computes every shape as it is, unless told otherwise."""
    defaults: dict[str, Any] = {
        "name": "sim",
        "implementation": "",
        "block_size": 16,
        "batch_size": 4,
        "prefill_tokens": 16,
        "compiles": False,
    }
    return DeviceSpec(**{**defaults, **changed})


class Silent:
    """A detokenizer for token ids that stand for nothing."""

    def append(self, _token: int) -> str:
        """Add nothing to the text."""
        return ""


def make_sequence(
    prompt: list[int], max_new_tokens: int, *, ends: frozenset[int] = frozenset(), **changed: Any
) -> Sequence:
    """A greedy generation that stops at `max_new_tokens` or a token of `ends`."""
    defaults: dict[str, Any] = {
        "sampling": SamplingParams(),
        "stopping": StoppingCriteria(max_new_tokens, ends),
        "detokenizer": Silent(),
    }
    return Sequence(prompt=prompt, max_new_tokens=max_new_tokens, **{**defaults, **changed})


def make_allocator(
    limits: Limits,
    blocks: int,
    prefix_limit: int | None = None,
    windows: Iterable[int | None] = (None,),
    prefixes: Prefixes | None = None,
) -> BlockAllocator:
    """An allocator over `blocks` KV blocks in each layer group, one for each of `windows`."""
    prefixes = Prefixes() if prefixes is None else prefixes
    pools = [BlockPool(blocks, limits.block_size, window, prefixes) for window in windows]
    return BlockAllocator(limits, pools, prefix_limit)


@attrs.frozen
class SingleEvents:
    """Receiving end of one sequence's channel."""

    _channel: trio.MemoryReceiveChannel[tuple[int, Token | ApiError]]

    async def receive(self) -> Token | ApiError:
        """Wait for the next item."""
        return (await self._channel.receive())[1]

    def __aiter__(self) -> "SingleEvents":
        return self

    async def __anext__(self) -> Token | ApiError:
        return (await anext(self._channel))[1]


@contextmanager
def generating(scheduler: Scheduler, sequence: Sequence) -> Iterator[SingleEvents]:
    """Generate one sequence while the body runs."""
    with scheduler.generating([sequence]) as events:
        yield SingleEvents(events)
