"""Rows for the sampler without a model or a step."""

import numpy as np
import torch

from tgi.device.cpu.cpu_device import CpuDevice
from tgi.protocol import Bucket, Step
from tgi.sampling import FLOATS, INTS
from tgi.testing.driver import lane_params
from tgi.worker.lanes import Lanes, entries_of
from tgi.worker.sampler import Masks, Sampler, SamplerInputs, needs_of

GAMMA, DELTA = 0.25, 1.5


def make_rows(params, *, draws=None, lengths=None, previous=None, top=0, masks=None, windowed=False):
    """Row i has params[i] in lane i; `masks` are those of some rows."""
    lanes = Lanes(len(params), 1)
    changed = tuple(lane_params(lane, **one) for lane, one in enumerate(params))
    lanes.update(
        Step(number=1, bucket=Bucket(1, 1, 1), lanes=b"", starts=b"", lengths=b"", samples=b"", draws=b"",
             tokens=b"", params=changed)
    )  # fmt: skip
    count = len(params)
    index = np.arange(count, dtype=np.int32)
    draws = np.array(draws if draws is not None else [0] * count, np.int32)
    ints, floats, barred = lanes.ints[:count].T, lanes.floats[:count].T, draws < lanes.min_tokens[:count]
    return SamplerInputs(
        needs=needs_of(ints, floats, barred),
        lanes=torch.arange(count),
        lengths=torch.tensor(lengths or [1] * count),
        previous=torch.tensor(previous or [0] * count),
        draws=torch.from_numpy(lanes.draw(index, draws)),
        masks=masks,
        windowed=windowed,
        barred=torch.from_numpy(barred.astype(np.int32)),
        params={
            name: torch.from_numpy(values.copy())
            for name, values in zip((*INTS, *FLOATS), (*ints, *floats), strict=True)
        },
        top=top,
    )


def pack(allowed, vocab):
    """A mask of these tokens: one bit after another in bytes."""
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def make_masks(allowed, vocab):
    """`allowed`: row -> the tokens it may give."""
    words = [np.frombuffer(pack(tokens, vocab), np.int32) for tokens in allowed.values()]
    return Masks(torch.from_numpy(np.stack(words)), torch.tensor(list(allowed)))


def make_sampler(params, vocab, device=None):
    """With row i's sequence in lane i."""
    sampler = Sampler(len(params) + 1, vocab, device or CpuDevice(1), GAMMA, DELTA)
    for lane, one in enumerate(params):
        enter(sampler, lane_params(lane, **one))
    return sampler


def enter(sampler, params):
    """Put a sequence into its lane, as a rank does before the sequence's first step."""
    ids, numbers = entries_of(params, sampler.tables.size)
    lane, anew = torch.tensor([[params.lane], [0]])
    sampler.tables.enter(lane, anew, torch.from_numpy(ids), torch.from_numpy(numbers))
