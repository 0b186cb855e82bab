"""Probes of a Gaudi card for `tgi doctor`: behaviour that is its own, or differs between releases."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import Batch, FlatBlocks, GroupBatch
from tgi.device.drawing import mixed
from tgi.device.graphs import Program, Tally
from tgi.device.static import DecodePlan, StaticDevice
from tgi.plugins.check import Check, fail, ok, warn
from tgi.weights.formats.fp8 import FP8

from .bridge import Bridge
from .gaudi_checks import GaudiDoctor

_ASSUMED = "Send us the report: the simulated card assumes something else."
_NO_FP8 = "Use neither --kv-cache-dtype fp8_e4m3fn nor a model in fp8 with this release."
_NARROW = AttentionSpec(0.5, wide=False)
_ADAPTERS = "Tell the authors of the adapters that you use that they cannot rely on {} here."


def gaudi_probes(device: StaticDevice, bridge: Bridge) -> Mapping[str, Callable[[], Check]]:
    """Return the probes by the names of their checks."""
    probes = {
        "static outputs": probe_outputs,
        "int64": probe_int64,
        "one_hot(-1)": probe_one_hot,
        "fp8": probe_fp8,
        "bit-casts": probe_bit_casts,
        "views": probe_views,
        "parts of inputs": probe_parts,
        "pinned memory": probe_pinned,
        "event order": probe_events,
        "stable sort": probe_stable_sort,
        "index_reduce": probe_index_reduce,
        "sort cost": probe_sort_cost,
        "random bits": probe_random_bits,
    }
    of_kernels = {
        "block adjustment": probe_block_adjustment,
        "fp8 batches": probe_fp8_batches,
        "fp8 cache": probe_fp8_cache,
    }
    found = {name: functools.partial(probe, device) for name, probe in probes.items()}
    return found | {name: functools.partial(probe, device, bridge) for name, probe in of_kernels.items()}


def probe_outputs(device: Device) -> Check:
    """Tell whether the next call of a graph overwrites its result."""
    name, graph = "static outputs", device.graph(Tally(device.torch_device))
    (first,) = graph(*device.upload(np.full(4, 1, np.int32)))
    device.fetch(first)()
    device.fetch(*graph(*device.upload(np.full(4, 2, np.int32))))()
    try:
        later = first.cpu().tolist()
    except RuntimeError:
        return ok(name, "The result of a graph is gone after the next call; this server copies it before.")
    if later == [2] * 4:
        return ok(name, "Every call of a graph has a result of its own.")
    if later == [6] * 4:
        return ok(name, "The next call of a graph overwrites its result; this server copies it before.")
    found = f"After the next call the result of a graph is {later}, which is the result of neither call."
    return fail(name, found, GaudiDoctor.wrong_result)


def probe_int64(device: Device) -> Check:
    """Tell how numbers beyond 32 bits are stored."""
    name, number = "int64", 2**31 + 5
    try:
        stored = (torch.tensor([number]).to(device.torch_device) + 0).cpu().item()
    except RuntimeError:
        return ok(name, "Numbers beyond 32 bits are refused; this server sends none.")
    if stored == number:
        return ok(name, "Numbers of 64 bits are kept.")
    if stored == number - 2**32:
        return ok(name, "Numbers are cut to 32 bits without an error; this server sends none beyond.")
    found = f"{number} becomes {stored}, which is neither itself nor its lower 32 bits."
    return warn(name, found, _ADAPTERS.format("int64"))


def probe_one_hot(device: Device) -> Check:
    """Tell the result for the index -1: a row of zeros on Gaudi, and an error elsewhere."""
    name = "one_hot(-1)"
    try:
        rows = F.one_hot(torch.tensor([1, -1]).to(device.torch_device), 3).cpu().tolist()
    except RuntimeError:
        return ok(name, "It is refused; this server does not use it.")
    if rows == [[0, 1, 0], [0, 0, 0]]:
        return ok(name, "It gives a row of zeros, as expected of Gaudi; this server does not use it.")
    return warn(name, f"It gives {rows}.", _ADAPTERS.format("one_hot"))


def probe_fp8(device: Device) -> Check:
    """Compare the greatest number of 8 bits with the one this server assumes."""
    name, limits = "fp8", torch.tensor([240.0, 448.0])
    kept = limits.to(device.torch_device).to(torch.float8_e4m3fn).float().cpu() == limits
    reach, assumed = float((limits * kept).max()), device.fp8_limit
    found = f"Numbers of 8 bits reach {reach:g}."
    if reach < assumed:
        advice = (
            "Use neither --kv-cache-dtype fp8_e4m3fn nor a model in fp8: the card's generation is misjudged."
        )
        return fail(name, f"{found} By its generation the card should reach {assumed:g}.", advice)
    return ok(name, found)


class _Trying(Program):
    """A program that is one function of a tensor."""

    regions: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, packed: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the result."""
        return (self._function(packed),)


def _twice(device: Device, function: Callable[[torch.Tensor], torch.Tensor], number: float) -> list[float]:
    """Run a function in a graph, compiled and then replayed, on [4] float32; return the second result."""
    graph = device.graph(_Trying(function))
    for value in (1.0, number):
        result = device.fetch(*graph(*device.upload(np.full(4, value, np.float32))))()[0].tolist()
    return result  # type: ignore[no-any-return]


def probe_bit_casts(device: Device) -> Check:
    """Tell whether a graph reads the bits of a number as another dtype; this server never does."""
    name = "bit-casts"
    try:
        found = _twice(device, lambda x: x.view(torch.int32).float(), 2.0)[0]
    except Exception as error:
        return ok(name, f"They are refused in a graph ({type(error).__name__}); this server has none.")
    if found == float(0x40000000):
        return ok(name, "A graph reads the bits of a number as another dtype; this server does not.")
    return ok(name, f"In a graph, the bits of 2.0 are read as {found:g}, as expected; this server has none.")


def probe_views(device: Device) -> Check:
    """Tell whether a change by a view of a kept tensor reaches the tensor; this server makes none."""
    name, kept = "views", torch.zeros(2, 2, device=device.torch_device)
    place = torch.zeros(1, dtype=torch.int64, device=device.torch_device)

    def change(x: torch.Tensor) -> torch.Tensor:
        kept.view(-1).index_copy_(0, place, x[:1])
        return x + 1

    try:
        _twice(device, change, 3.0)
    except Exception as error:
        return ok(name, f"Changes by a view are refused in a graph ({type(error).__name__}).")
    if kept.cpu().tolist() == [[3.0, 0.0], [0.0, 0.0]]:
        return ok(name, "A graph may change a tensor by a view of it; this server does not.")
    return ok(name, "A graph loses changes by a view of a tensor, as expected; this server makes none.")


def probe_parts(device: StaticDevice) -> Check:
    """Check that a graph reads parts of a new input on both sides of a cut, as every step does."""
    name = "parts of inputs"

    def parts(x: torch.Tensor) -> torch.Tensor:
        first = x[:2] * 2
        device.border()
        return torch.cat((first, x[2:] + 1))

    graph = device.graph(_Trying(parts))
    for value in (0, 10):
        given = np.arange(value, value + 4, dtype=np.float32)
        found = device.fetch(*graph(*device.upload(given)))()[0].tolist()
    if found != [20.0, 22.0, 13.0, 14.0]:
        return fail(name, f"They give {found} and not [20, 22, 13, 14].", GaudiDoctor.wrong_result)
    return ok(name, "A graph reads parts of its input, also after a cut.")


def probe_pinned(_: Device) -> Check:
    """Tell whether memory of the host can be pinned, which keeps copies of results out of the way."""
    name = "pinned memory"
    try:
        torch.empty(1).pin_memory(device="hpu")
    except RuntimeError as error:
        found = f"Memory cannot be pinned ({type(error).__name__}): whoever waits for a result copies it."
        return warn(name, found, "Steps take a little longer. Try a newer release of Gaudi's software.")
    return ok(name, "Memory of the host can be pinned.")


def probe_events(device: Device) -> Check:
    """Check that what an event covers has arrived: 50 results, fetched while the next is computed."""
    graph, expected = device.graph(_Trying(lambda x: x * 2)), []
    waits = []
    for number in range(50):
        waits.append(device.fetch(*graph(*device.upload(np.full(4096, number, np.float32)))))
        expected.append(2.0 * number)
        if len(waits) > 1 and set(waits[-2]()[0].tolist()) != {expected[-2]}:
            return fail("event order", "A result is not there after its event.", GaudiDoctor.wrong_result)
    return ok("event order", "Results are there after their events.")


def probe_stable_sort(device: Device) -> Check:
    """Tell whether a stable sort of 1,000 equal numbers keeps their order; this server sorts values only."""
    order = torch.zeros(1000).to(device.torch_device).sort(stable=True).indices.cpu()
    if torch.equal(order, torch.arange(1000)):
        return ok("stable sort", "A stable sort keeps the order of equal numbers.")
    return ok(
        "stable sort", "A stable sort does not keep the order of equal numbers; this server needs none."
    )


def probe_index_reduce(device: Device) -> Check:
    """Check `index_reduce` of greatest values along the first dimension, which joins blocks of a row."""

    def reduce(x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(4, dtype=torch.int64, device=x.device) // 2
        return torch.zeros_like(x).index_reduce(0, places, x * (places + 1), "amax")

    if (found := _twice(device, reduce, 3.0)) != [3.0, 6.0, 0.0, 0.0]:
        return fail("index_reduce", f"It gives {found} and not [3, 6, 0, 0].", GaudiDoctor.wrong_result)
    return ok("index_reduce", "It gives the greatest values.")


def probe_sort_cost(device: Device) -> Check:
    """Compare the time to sort 32 rows of 131,072 numbers with that of their best 1,024, and of one pass."""
    x = torch.rand(32, 1 << 17, generator=torch.Generator().manual_seed(0)).to(device.torch_device)

    def seconds(function: Callable[[], torch.Tensor]) -> float:
        for attempt in range(2):  # compiled by the first
            began = time.perf_counter()
            function().flatten()[:1].cpu()
            took = time.perf_counter() - began
            del attempt
        return took

    whole, best, once = (
        seconds(lambda: x.sort(-1).values),
        seconds(lambda: x.topk(1024, -1).values),
        seconds(lambda: x + 1),
    )
    found = f"A sort takes {1e3 * whole:.1f} ms, the best 1,024 {1e3 * best:.1f}, a pass {1e3 * once:.1f}."
    if best < whole:
        return ok("sort cost", found)
    return warn("sort cost", f"{found} The best are as dear as all.", _ASSUMED)


def probe_random_bits(device: Device) -> Check:
    """Check that products of 32-bit integers keep their low bits, of which drawn tokens are made."""
    name, numbers = "random bits", [0, 3, 12345, 2**31 - 1]
    given = torch.tensor(numbers, dtype=torch.int32)
    right, places = mixed(given), given.to(device.torch_device)

    def bits(x: torch.Tensor) -> torch.Tensor:
        made = mixed(places + (x * 0).int())
        return torch.cat(((made & 0xFFFF)[:2].float(), ((made >> 16) & 0xFFFF)[2:].float()))

    expected = [*(right & 0xFFFF)[:2].tolist(), *((right >> 16) & 0xFFFF)[2:].tolist()]
    if (found := _twice(device, bits, 2.0)) != expected:
        advice = "Ask with temperature 0 only: other tokens would not be drawn at random."
        return fail(name, f"A hash of 32-bit integers gives {found} and not {expected}.", advice)
    return ok(name, "Products of 32-bit integers keep their low bits.")


def _compare(
    device: Device,
    name: str,
    function: Callable[[torch.Tensor], torch.Tensor],
    expected: Sequence[float],
    advice: str,
) -> Check:
    """Compare the result of a graph for [4] times 0.5 with the right one, within the precision of fp8."""
    try:
        found = _twice(device, function, 0.5)
    except Exception as error:
        return fail(name, f"The card refuses it: {type(error).__name__}: {error}"[:300], advice)
    if all(math.isclose(*pair, rel_tol=0.08) for pair in zip(found, expected, strict=False)):
        return ok(name, "It gives the right numbers.")
    shown = [[round(number, 3) for number in numbers] for numbers in (found, expected)]
    return fail(name, f"It gives {shown[0]} and not {shown[1]}.", advice)


def probe_block_adjustment(device: StaticDevice, bridge: Bridge) -> Check:
    """Check the factors of a row with two blocks, of one with one, and of padding, which must be finite."""
    name, place = "block adjustment", device.torch_device
    if bridge.block_adjustment is None:
        return ok(name, "This card or release has none, and plain operations take its place.")
    rows, highest = torch.tensor([0, 0, 1, 2]), torch.tensor([1.0, 2.0, 3.0, 0.0]).to(place)
    member = (rows[:, None] == torch.arange(2)).float().to(place)
    plan = DecodePlan(rows.to(place), None, rows.to(place), member, {}, None)

    def factors(x: torch.Tensor) -> torch.Tensor:
        scores = (x * highest)[:, None]
        found = device.shares(scores, torch.full_like(scores, 2.0), plan, _NARROW)[:, 0]
        return torch.cat((found[:3], (found[3:].abs() < 1e9).float()))

    less = math.exp(-0.5)
    expected = [less / (2 + 2 * less), 1 / (2 + 2 * less), 0.5, 1.0]
    return _compare(device, name, factors, expected, GaudiDoctor.wrong_result)


def probe_fp8_batches(device: StaticDevice, bridge: Bridge) -> Check:
    """Check products of a batch of matrices in fp8, which decode steps over a cache in fp8 have."""
    name, place = "fp8 batches", device.torch_device
    if bridge.fp8_gemm is None:
        return warn(name, "This release cannot multiply numbers of 8 bits: they are widened first.", _NO_FP8)
    device.dtype("auto")
    (layer,) = device.allocate_cache(1, 4, 1, 2, FP8).layers
    weights = torch.tensor([0.5, 1.0, 1.0, 0.25]).to(place)
    values = torch.tensor([1.0, 2.0, 4.0, -8.0, 3.0, 0.0, 0.0, 16.0]).to(place)
    blocks = values.to(FP8).view(2, 2, 1, 2)  # of two tokens with a head of two features

    def products(x: torch.Tensor) -> torch.Tensor:
        return device.sum_values(layer, (x * weights).view(2, 1, 1, 2), blocks).float().flatten()

    return _compare(device, name, products, [2.25, -3.5, 1.5, 2.0], _NO_FP8)


def probe_fp8_cache(device: StaticDevice, _: Bridge) -> Check:
    """Check a decode step over a cache in fp8: of a row with two tokens of zeros before its own, and of one
    without.
    """
    place = device.torch_device
    device.dtype("auto")
    device.use(0, _NARROW)
    cache = device.allocate_cache(1, 8, 1, 2, FP8)  # four blocks of two tokens
    (layer,) = cache.layers

    def ints(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32).to(place)

    flat = FlatBlocks(ints(1, 2, 3, 0), ints(0, 0, 1, 2), ints(3, 1, 1, 1))
    slots, value = ints(4, 6), torch.tensor([1.0, 2.0] * 2).to(place)
    group = GroupBatch(slots, slots.new_empty(2, 0), flat=flat)
    batch = Batch(slots, slots, slots, slots, slots, slots[:0], cache, [group])

    def attend(x: torch.Tensor) -> torch.Tensor:
        batch.plan = device.plan(batch, 2)
        new = x.to(device.model_dtype).view(2, 1, 2)
        values = (value * x * 2).to(new.dtype).view(2, 1, 2)
        device.store_kv(layer, new, values, batch)
        return device.attention(layer, new, new, values, batch, _NARROW).float().flatten()

    share = math.exp(0.25) / (2 + math.exp(0.25))
    return _compare(device, "fp8 cache", attend, [share, 2 * share, 1.0, 2.0], _NO_FP8)
