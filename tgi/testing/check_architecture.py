"""The whole test of a model package: `check_architecture(folder)` on a small float32 checkpoint.

A text is computed in every way in which a server may compute it. All must give the same log-probabilities of
the whole vocabulary, within one bound. Simple ways come first; the first that differs ends the check with its
likely causes: `AssertionError: only with context in the cache …`.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.device.experts import Experts
from tgi.layers.loading import describe, load_model
from tgi.plugins import ConfigError
from tgi.protocol import Describe
from tgi.weights import Checkpoint, CheckpointError, Shard
from tgi.weights.formats import LinearWeight

from . import diagnosis
from .driver import BLOCK_SIZE, Driver, load_command, make_driver
from .rank_threads import on_threads
from .runs import (
    DECODED,
    Logprobs,
    chunked,
    decoded,
    generate,
    random_prompt,
    shared,
    together,
    told,
    transformers_logprobs,
    whole,
)
from .stages import StagedRunner

LENGTHS = (37, 5, 18)
"""Lengths of the prompts in tokens."""
PADDING = (3, 5, 2)
"""Rows, tokens and blocks by which a bucket exceeds a step."""
MIN_BLOCKS = 255
"""Least number of blocks in a cache, so that those of a text can be far apart."""


def check_architecture(
    folder: Path | str,
    *,
    tolerance: float = 1e-4,
    ranks: int = 2,
    lengths: Sequence[int] = LENGTHS,
    reference: Any = None,
    cards: Sequence[str] = ("gaudi2-lazy", "gaudi3-compile"),
    devices: Sequence[Device] = (),
    expert_parallel: bool = False,
) -> None:
    """Raise AssertionError if the model of `folder` is wrong; the message says where to look.

    The checks, in this order: every tensor of the checkpoint is read, and none is missing; the model gives
    the results of transformers (of `reference`, or of the model that transformers loads from the folder);
    decoding, prefill in chunks, rows together, scattered blocks and a shared prefix give the results of a
    prefill of the whole text; so do plain torch, padding, simulated `cards`, whose steps are graphs, other
    `devices`, and `ranks` ranks (0: skip), with whole experts each if `expert_parallel`; and the ranks keep
    the tensors that the layers ask for.
    """
    case = _load(Path(folder), lengths, tolerance)
    _compare_with_transformers(case, reference)
    with _explained("with the CPU's operations", diagnosis.on_cpu):
        case.compare(case.in_all_ways(CpuDevice(1)))
    with _explained("with plain torch on static shapes", diagnosis.on_plain):
        case.compare(case.in_all_ways(Device(1), PADDING))
    if cards:
        from tgi_simulated_gaudi.device import open_card  # a distribution of its own
    for card in cards:
        with open_card(card) as simulated, _explained(f"on a simulated {card}", diagnosis.on_card):
            case.compare(case.in_few_ways(simulated))
    for device in devices:
        with _explained(f"on {type(device).__name__}", diagnosis.on_card):
            case.compare(case.in_all_ways(device, PADDING))
    if ranks:
        _compare_ranks(case, ranks, expert_parallel)
    _compare_stages(case)
    for shard in (Shard(), *(Shard(rank, ranks) for rank in range(ranks))):
        _check_weights(case.drivers.folder, shard, expert_parallel)


@attrs.frozen(eq=False)
class _Drivers:
    """Drivers of the model of `folder`, with room for texts whose prompts have these lengths."""

    folder: Path
    lengths: Sequence[int]

    def make(self, device: Device, *, scattered: bool = False) -> Driver:
        """Make a driver whose blocks are in order, or scattered over the cache, the same each time."""
        order = list(self.blocks)
        if scattered:
            random.Random(0).shuffle(order)
        rows, tokens = len(self.lengths) + PADDING[0], max(self.lengths) + PADDING[1]
        return make_driver(self.folder, device, order, prefill_tokens=rows * max(tokens, BLOCK_SIZE))

    @property
    def longest(self) -> int:
        """Index of the longest prompt."""
        return self.lengths.index(max(self.lengths))

    @property
    def blocks(self) -> range:
        """Blocks for all texts at once, and two more that are shorter than two blocks."""
        each = (-(-(length + DECODED) // BLOCK_SIZE) for length in self.lengths)
        return range(1, 1 + max(sum(each) + 2 * 2, MIN_BLOCKS))


@attrs.frozen(eq=False)
class _Case:
    """Texts and their right results."""

    drivers: _Drivers
    texts: list[list[int]]
    """Token ids of prompts and their continuations."""
    wanted: list[Logprobs]
    """Results of a prefill for each position, one row alone."""
    tolerance: float

    def compare(self, results: "Iterable[_Computed]") -> None:
        """Raise _DifferencesError with the results that are not as wanted."""
        wrong = {}
        for name, got, wanted in results:
            difference = max(map(_difference, got, wanted), default=0.0)
            if not difference <= self.tolerance:  # nor is NaN
                wrong[name] = difference
        if wrong:
            raise _DifferencesError(wrong)

    def in_all_ways(
        self, device: Device, padding: tuple[int, int, int] | None = None
    ) -> "Iterator[_Computed]":
        """Compute the texts in every way, by the names that `diagnosis` knows."""
        yield "decode", self._decoded(self.drivers.make(device)), _generated(self.wanted)
        scattered = self.drivers.make(device, scattered=True)
        yield "scattered", self._decoded(scattered), _generated(self.wanted)
        yield "chunks", self._chunked(device, len(self.texts)), _prompted(self.wanted)
        yield from self._together("together", device, (0, 0, 0))
        if padding is not None:
            yield from self._together("padded", device, padding)
        yield "prefix", *shared(self.drivers.make(device), self.texts[0])

    def in_few_ways(self, device: Device) -> "Iterator[_Computed]":
        """Compute them in the ways that graphs may get wrong: each shape of a step takes a while."""
        yield "chunks", self._chunked(device, 1), _prompted(self.wanted[:1])
        yield from self._together("padded", device, PADDING)

    def _decoded(self, driver: Driver) -> list[Logprobs]:
        rows = enumerate(zip(self.texts, self.drivers.lengths, strict=True))
        return _generated(decoded(driver, lane, text, length) for lane, (text, length) in rows)

    def _chunked(self, device: Device, count: int) -> list[Logprobs]:
        rows = list(zip(self.texts, self.drivers.lengths, strict=True))[:count]
        return [chunked(self.drivers.make(device, scattered=True), text[:length]) for text, length in rows]

    def _together(self, name: str, device: Device, padding: tuple[int, int, int]) -> "Iterator[_Computed]":
        driver = self.drivers.make(device, scattered=True)
        rows = together(driver, self.texts, self.drivers.lengths, padding)
        yield name, _prompted(rows), _prompted(self.wanted)
        yield f"{name} decode", _generated(rows), _generated(self.wanted)


_Computed = tuple[str, Sequence[Logprobs], Sequence[Logprobs]]
"""Name of a way to compute, its results, and the right ones."""


class _DifferencesError(Exception):
    """Differences of the ways to compute that give wrong results, by name."""

    def __init__(self, differences: Mapping[str, float]) -> None:
        super().__init__(differences)
        self.differences = differences


def _prompted(rows: Iterable[Logprobs]) -> list[Logprobs]:
    """Return the results of prefill steps."""
    return [row[:1] for row in rows]


def _generated(rows: Iterable[Logprobs]) -> list[Logprobs]:
    """Return the results of decode steps."""
    return [row[1:] for row in rows]


def _load(folder: Path, lengths: Sequence[int], tolerance: float) -> _Case:
    """Compute the texts. Raises AssertionError if the model cannot be loaded or run at all."""
    device, drivers = CpuDevice(1), _Drivers(folder, lengths)
    try:
        driver = drivers.make(device)
        weights = load_model(load_command(folder), Shard(), Device(1), lambda *_: None).build.weights
        if isinstance(weights, Checkpoint) and weights.unread:
            raise CheckpointError(weights.superfluous(weights.unread))
    except (ConfigError, CheckpointError) as error:
        raise AssertionError(diagnosis.not_loaded(error)) from error
    prompts = [random_prompt(driver.runner.config.vocab_size, n, seed) for seed, n in enumerate(lengths)]
    texts = [prompt + generate(drivers.make(device), prompt) for prompt in prompts]
    rows = zip(texts, lengths, strict=True)
    wanted = [whole(drivers.make(device), text, length) for text, length in rows]
    return _Case(drivers, texts, wanted, tolerance)


def _compare_with_transformers(case: _Case, reference: Any) -> None:
    drivers = case.drivers
    right = transformers_logprobs(drivers.folder, reference, case.texts)
    ends = [logprobs[n - 1 : -1] for logprobs, n in zip(right, drivers.lengths, strict=True)]
    worst = max(map(_difference, case.wanted, ends))
    if worst <= case.tolerance:
        return
    mine = whole(drivers.make(CpuDevice(1)), case.texts[drivers.longest], 1)
    by_position = (mine - right[drivers.longest][:-1]).abs().amax(1)
    places = torch.nonzero(~(by_position <= case.tolerance)).flatten().tolist()
    raise AssertionError(diagnosis.not_as_transformers(worst, places[0] if places else None))


def _compare_ranks(case: _Case, ranks: int, expert_parallel: bool) -> None:
    """Compare the longest prompt, which is enough: ranks do not know of rows."""
    drivers, longest = case.drivers, case.drivers.longest
    text, length = case.texts[longest], drivers.lengths[longest]

    def run(driver: Driver) -> list[Logprobs]:
        return [decoded(driver, 0, text, length)]

    with _explained(f"on {ranks} ranks", diagnosis.on_ranks):
        try:
            load = {"expert_parallel": expert_parallel}
            got = on_threads(drivers.folder, ranks, run, drivers.blocks, **load)
        except (ConfigError, CheckpointError) as error:
            raise AssertionError(f"it cannot be divided over {ranks} ranks: {error}") from error
        case.compare([("ranks", got, [case.wanted[longest]])])


def _compare_stages(case: _Case) -> None:
    """Compare the longest prompt in two stages, if the model may be divided into them."""
    drivers, longest = case.drivers, case.drivers.longest
    text, length = case.texts[longest], drivers.lengths[longest]
    command = load_command(drivers.folder)
    asked = Describe(
        folder=command.folder, architecture=command.architecture, ranks=1, stages=2, dtype=command.dtype
    )
    try:
        layers = describe(asked).stage_layers
    except ConfigError:
        return
    with _explained("in 2 stages", diagnosis.on_stages):
        driver = Driver(StagedRunner.open(command, layers), drivers.blocks)
        case.compare([("stages", [told(driver, 0, text, length)], [case.wanted[longest]])])


def _check_weights(folder: Path, shard: Shard, expert_parallel: bool) -> None:
    command = load_command(folder, expert_parallel=expert_parallel)
    loaded = load_model(command, shard, Device(1), lambda *_: None)
    described = loaded.describe(torch.float32).weight_bytes
    assert isinstance(loaded.model, torch.nn.Module)
    held = [value for layer in loaded.model.modules() for value in vars(layer).values()]
    held += loaded.model.parameters()
    kept = sum(tensor.nbytes for value in held for tensor in _tensors(value))
    if abs(kept - described) > 0.01 * described:
        raise AssertionError(diagnosis.not_counted(shard.rank, shard.size, kept, described))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield a tensor, or those of a linear layer's weight, or of experts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, LinearWeight | Experts):
        for part in attrs.astuple(value, recurse=False):  # type: ignore[arg-type]
            yield from _tensors(part)


@contextlib.contextmanager
def _explained(where: str, explain: Callable[[Mapping[str, float]], str]) -> Iterator[None]:
    """Turn an error of the body into an AssertionError with the likely causes."""
    try:
        yield
    except _DifferencesError as error:
        raise AssertionError(
            f"{where}: {explain(error.differences)}; {diagnosis.sizes(error.differences)}"
        ) from None
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{where}: {diagnosis.failed(error)}") from error


def _difference(mine: Logprobs, other: Logprobs) -> float:
    return (mine - other).abs().max().item()
