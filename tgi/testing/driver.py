"""Drives a rank's Runner without a server: plans steps for a few sequences, and keeps their block tables."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import numpy as np
import torch

from tgi.device.base import Device
from tgi.limits import first_block
from tgi.protocol import Bucket, LaneParams, Load, LoadLora, Result, Step, ints, unpack_floats, unpack_ints
from tgi.sampling import SamplingParams
from tgi.weights import Shard
from tgi.worker.runner import Runner

BLOCK_SIZE = 16
MAX_ROWS = 64
"""Samples of a step, padding included."""
_NO_MASKS: Mapping[int, bytes] = MappingProxyType({})


@attrs.define(eq=False)
class Lane:
    """The sequence in a lane."""

    params: dict[str, Any]
    table: list[int] = attrs.field(factory=list)
    sent: int = 0
    """Entries of the table that the rank knows."""
    cached: int = 0
    """Tokens in the KV cache."""
    draws: int = 0
    """Tokens that were generated."""
    started: bool = False
    """Whether the rank knows the parameters."""
    lora: int = -1
    """Slot of its LoRA adapter; -1: none."""


@attrs.frozen
class Answer:
    """Result of a step for one row."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    logits: torch.Tensor
    """[vocab] float32, before the sampler."""


class Driver:
    """Runs sequences in the lanes of a runner.

    `blocks` are the block ids that tables are filled with, in order: shuffle them for fragmented tables.
    """

    def __init__(self, runner: Runner, blocks: Iterable[int] = range(1, 256)) -> None:
        self.runner = runner
        self.lanes: dict[int, Lane] = {}
        self.free = list(blocks)
        self.result: Result | None = None
        self._number = 0
        with torch.inference_mode():
            self._logits = torch.zeros(
                MAX_ROWS, runner.config.vocab_size, dtype=runner.dtype, device=runner.device.torch_device
            )
        runner.allocate(*[max(self.free) + 1] * len(runner.groups))
        model = runner.model

        def recording(batch: Any) -> torch.Tensor:
            logits = model(batch)
            rows = torch.arange(logits.shape[0], device=logits.device)
            self._logits.index_copy_(0, rows, logits)  # on the device, as a captured step must
            return logits

        runner.model = recording

    def start(self, lane: int, *, lora: int = -1, **params: Any) -> None:
        """Put a new sequence into a lane; `params` are those of `lane_params`, `lora` is the adapter's slot.

        Blocks that only the lane's earlier sequence had become free, and are used after all others.
        """
        before = self.lanes.pop(lane, None)
        if before is not None:
            kept = {block for other in self.lanes.values() for block in other.table}
            self.free += [block for block in before.table if block and block not in kept]
        self.lanes[lane] = Lane(params, lora=lora)

    def load_lora(self, slot: int, folder: Path | str) -> str:
        """Put a LoRA adapter into a slot, and return why it cannot be used, if so."""
        return self.runner.load_lora(LoadLora(0, slot, str(folder))).fault

    def share(self, lane: int, other: int, tokens: int) -> None:
        """Let a new sequence begin with the blocks of another one, as a cached prefix."""
        assert tokens % BLOCK_SIZE == 0
        sequence = self.lanes[lane]
        sequence.table = self.lanes[other].table[: tokens // BLOCK_SIZE]
        sequence.cached = tokens

    def release(self, lane: int) -> None:
        """Free the blocks of a sequence that no layer sees any more."""
        row = self.lanes[lane]
        passed = self._passed(row)
        self.free += [block for block in row.table[:passed] if block]
        row.table[:passed] = [0] * passed

    def prefill(
        self,
        tokens: Mapping[int, Sequence[int]],
        *,
        unfinished: Iterable[int] = (),
        targets: Mapping[int, Sequence[int]] | None = None,
        prompt_top: int = 0,
        pad: tuple[int, int, int] = (0, 0, 0),
        top: int = 0,
        masks: Mapping[int, bytes] = _NO_MASKS,
        least_sampler: int = 0,
    ) -> dict[int, Answer]:
        """Compute tokens of several lanes in one step, and return the answers of all but the `unfinished`.

        Token -1 is the last one that was sampled for its lane. `pad` is what the bucket has more than the
        step, in rows, tokens and blocks. `masks` are given by lane.
        """
        lengths = [len(part) for part in tokens.values()]
        columns: dict[str, Any] = {"tokens": ints(token for part in tokens.values() for token in part)}
        columns |= {"prompt_top": prompt_top, "least_sampler": least_sampler}
        if targets is not None:
            columns["targets"] = ints(token for lane in tokens for token in targets[lane])
        unfinished = set(unfinished)
        sampled = [lane not in unfinished for lane in tokens]
        columns |= _mask_columns([lane for lane in tokens if lane not in unfinished], masks)
        return self._step(list(tokens), lengths, sampled, pad, prefill=True, top=top, columns=columns)

    def decode(
        self,
        lanes: Sequence[int],
        *,
        pad: tuple[int, int, int] = (0, 0, 0),
        top: int = 0,
        masks: Mapping[int, bytes] = _NO_MASKS,
        least_sampler: int = 0,
    ) -> dict[int, Answer]:
        """Generate one more token for each lane."""
        ones, every = [1] * len(lanes), [True] * len(lanes)
        columns: dict[str, Any] = dict(_mask_columns(lanes, masks))
        columns |= {"tokens": ints([-1] * len(lanes)), "least_sampler": least_sampler}
        return self._step(lanes, ones, every, pad, prefill=False, top=top, columns=columns)

    def _step(
        self,
        lanes: Sequence[int],
        lengths: Sequence[int],
        sampled: Sequence[bool],
        pad: tuple[int, int, int],
        *,
        prefill: bool,
        top: int,
        columns: Mapping[str, Any],
    ) -> dict[int, Answer]:
        rows = [self.lanes[lane] for lane in lanes]
        starts = [row.cached for row in rows]
        columns = {**columns, **self._grow(lanes, lengths)}
        fresh = [lane for lane, row in zip(lanes, rows, strict=True) if not row.started]
        self._number += 1
        step = Step(
            number=self._number,
            bucket=Bucket(
                len(lanes) + pad[0], max(lengths) + pad[1], self._blocks(rows, prefill) + pad[2], prefill
            ),
            lanes=ints(lanes),
            starts=ints(starts),
            lengths=ints(lengths),
            samples=ints(sampled),
            draws=ints(row.draws for row in rows),
            loras=ints(row.lora for row in rows) if any(row.lora >= 0 for row in rows) else b"",
            params=tuple(lane_params(lane, **self.lanes[lane].params) for lane in fresh),
            top=top,
            **columns,
        )
        for row, length, drawn in zip(rows, lengths, sampled, strict=True):
            row.started = True
            row.cached += length
            row.draws += drawn
        self.result = self.runner.execute(step)
        answered = [lane for lane, drawn in zip(lanes, sampled, strict=True) if drawn]
        return dict(zip(answered, self._answers(self.result, sampled, top), strict=True))

    def _blocks(self, rows: Sequence[Lane], prefill: bool) -> int:
        """Count blocks as a bucket of this device does."""
        device = self.runner.device
        if self.runner.contiguous and not prefill:
            return 1 + max(block for row in rows for block in row.table)
        context = prefill and device.compiles
        ends = [-(-row.cached // BLOCK_SIZE) if context else len(row.table) for row in rows]
        counts = [end - self._passed(row) for end, row in zip(ends, rows, strict=True)]
        return sum(counts) if device.flat and not prefill else max(counts)

    def _passed(self, row: Lane) -> int:
        """Return how many of a lane's blocks no layer sees any more."""
        windows = [group.window for group in self.runner.groups]
        widest = None if None in windows else max(window for window in windows if window)
        return first_block(row.cached, widest, BLOCK_SIZE)

    def _grow(self, lanes: Sequence[int], lengths: Sequence[int]) -> dict[str, bytes]:
        grown: list[tuple[int, int, int, list[int]]] = []
        for lane, length in zip(lanes, lengths, strict=True):
            row = self.lanes[lane]
            while len(row.table) * BLOCK_SIZE < row.cached + length:
                row.table.append(self.free.pop(0))
            if len(row.table) > row.sent:
                new = row.table[row.sent :]
                grown += [(group, lane, row.sent, new) for group in range(len(self.runner.groups))]
                row.sent = len(row.table)
        return {
            "table_groups": ints(group for group, _, _, _ in grown),
            "table_lanes": ints(lane for _, lane, _, _ in grown),
            "table_starts": ints(start for _, _, start, _ in grown),
            "table_counts": ints(len(blocks) for _, _, _, blocks in grown),
            "table_blocks": ints(block for _, _, _, blocks in grown for block in blocks),
        }

    def _answers(self, result: Result, sampled: Sequence[bool], top: int) -> list[Answer]:
        tokens, logprobs = unpack_ints(result.tokens), unpack_floats(result.logprobs)
        top_tokens = unpack_ints(result.top_tokens).reshape(len(tokens), top)
        top_logprobs = unpack_floats(result.top_logprobs).reshape(len(tokens), top)
        packed = not self.runner.device.compiles
        rows = range(len(tokens)) if packed else np.flatnonzero(sampled).tolist()
        logits = self._logits.to("cpu", torch.float32, copy=True)
        return [
            Answer(
                int(tokens[i]),
                float(logprobs[i]),
                list(zip(top_tokens[i].tolist(), top_logprobs[i].tolist(), strict=True)),
                logits[row],
            )
            for i, row in enumerate(rows)
        ]


def _mask_columns(lanes: Sequence[int], masks: Mapping[int, bytes]) -> dict[str, bytes]:
    """Return the columns of a step's masks; `lanes` are those that are sampled, in order."""
    masked = [index for index, lane in enumerate(lanes) if lane in masks]
    return {"masked": ints(masked), "masks": b"".join(masks[lanes[index]] for index in masked)}


def lane_params(
    lane: int, *, history: Iterable[int] = (), prompt_length: int = 0, **changed: Any
) -> LaneParams:
    """Make the parameters of a lane: neutral, but for fields of SamplingParams in `changed`, and `bias`, a
    mapping from token ids."""
    if "bias" in changed:
        changed["logit_bias"] = tuple(changed.pop("bias").items())
    changed["ends"] = tuple(changed.get("ends", ()))
    return LaneParams(
        lane=lane, sampling=SamplingParams(**changed), history=ints(history), prompt_length=prompt_length
    )


def load_command(
    folder: Path | str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
    lanes: int = 16,
    top: int = 8,
    max_tokens: int = 4096,
    **more: Any,
) -> Load:
    """Make the command to load a checkpoint."""
    architecture = json.loads((Path(folder) / "config.json").read_bytes())["architectures"][0]
    return Load(
        folder=str(folder),
        architecture=architecture,
        device=device,
        dtype=dtype,
        threads=threads,
        lanes=lanes,
        block_size=BLOCK_SIZE,
        max_tokens=max_tokens,
        top=top,
        **more,
    )


def make_driver(
    folder: Path | str, device: Device, blocks: Iterable[int] = range(1, 256), **load: Any
) -> Driver:
    """Load a checkpoint in this process, and return a driver of it."""
    return Driver(Runner.load(load_command(folder, **load), Shard(), device), blocks)
