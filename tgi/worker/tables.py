"""What the sampler keeps on the device for each lane: a value for every token of the vocabulary.

A lane's rows hold what they held before unless the sequence that enters it has a use for them; whoever reads
them looks at the lane's parameters first.
"""

import numpy as np
import numpy.typing as npt
import torch

from tgi.device.base import Device
from tgi.protocol import LaneParams, unpack_ints

_MOST_BIAS = 1e4
"""What lies beyond has the effect of the bound: the scores stay finite in float32."""


def dense_bias(params: LaneParams, size: int) -> npt.NDArray[np.float32]:
    """[size]: what is added to each token's score."""
    bias = np.zeros(size, np.float32)
    for token, value in params.sampling.logit_bias:
        if token < size:
            bias[token] = min(max(value, -_MOST_BIAS), _MOST_BIAS)
    return bias


def dense_ends(params: LaneParams, size: int) -> npt.NDArray[np.bool_]:
    """[size]: whether each token would end the text; all false where nothing else would be left."""
    ends = np.zeros(size, np.bool_)
    ends[[token for token in params.sampling.ends if token < size]] = True
    return ends & (not ends.all())


def dense_counts(
    params: LaneParams, size: int, known: int | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """[size] each: how often the history has each token, and how often of these it was generated; `known`:
    of its first tokens only."""
    history = unpack_ints(params.history)
    prompt = params.prompt_length or len(history)
    every, generated = (
        np.bincount(tokens, minlength=size).astype(np.float32)
        for tokens in (history[:known], history[prompt:known])
    )
    return every, generated


class Tables:
    """[lanes, vocab] each; together tgi.footprint.TABLE_BYTES for one token of one lane."""

    def __init__(self, lanes: int, vocab_size: int, device: Device) -> None:
        def empty(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(lanes, vocab_size, dtype=dtype, device=device.torch_device)

        self.counts = empty(torch.float32)
        """How often the sequence has the token. In float32, since not every device adds integers by index."""
        self.generated = empty(torch.float32)
        """How often of these it was generated."""
        self.bias = empty(torch.float32)
        """What is added to the token's score."""
        self.ends = empty(torch.bool)
        """Whether the token would end the text."""

    def start(self, params: LaneParams) -> None:
        """A sequence enters a lane. Ids that the vocabulary does not have are passed over."""
        if params.history:
            for table, row in zip(
                (self.counts, self.generated), dense_counts(params, self._size), strict=True
            ):
                self._write(table, params.lane, row)
        if params.sampling.logit_bias:
            self._write(self.bias, params.lane, dense_bias(params, self._size))
        if params.sampling.ends:
            self._write(self.ends, params.lane, dense_ends(params, self._size))

    def count(self, lanes: torch.Tensor, tokens: torch.Tensor) -> None:
        """Each lane's sequence goes on with a token that was generated."""
        ones = torch.ones_like(tokens, dtype=torch.float32)
        self.add(lanes, tokens, ones, ones)

    # What follows is for programs: on the device, with shapes that do not change. All arguments are [n].

    def add(
        self, lanes: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor, generated: torch.Tensor
    ) -> None:
        """The lanes' sequences have these tokens, so many times; 0 for padding."""
        places = self._places(lanes, tokens)
        self.counts.view(-1).scatter_add_(0, places, counted.float())
        self.generated.view(-1).scatter_add_(0, places, generated.float())

    def clear(self, counted: torch.Tensor, marked: torch.Tensor) -> None:
        """Nothing is counted in the one lanes, no token has a bias or is an end in the other."""
        for lanes, tables in ((counted, (self.counts, self.generated)), (marked, (self.bias, self.ends))):
            for table in tables:
                nothing = table.new_zeros(lanes.shape[0], self._size)
                table.index_copy_(0, lanes.long(), nothing)

    def mark(self, lanes: torch.Tensor, biased: torch.Tensor, bias: torch.Tensor, ends: torch.Tensor) -> None:
        """In lanes that are clear: tokens [n, m] with their bias, [n, k] that are ends; -1 for padding."""
        places = self._places(lanes[:, None].expand_as(biased), biased.clamp_min(0)).flatten()
        self.bias.view(-1).scatter_add_(0, places, bias.flatten())
        spare = (self.counts.shape[0] - 1) * self._size  # of the padding's lane
        places = torch.where(ends < 0, spare, self._places(lanes[:, None].expand_as(ends), ends))
        self.ends.view(-1).scatter_(0, places.flatten(), True)

    def replace(
        self,
        lane: torch.Tensor,
        counts: torch.Tensor,
        generated: torch.Tensor,
        bias: torch.Tensor,
        ends: torch.Tensor,
    ) -> None:
        """The whole rows of a lane [1], [vocab] each: `ends` are other than 0."""
        self.counts.index_copy_(0, lane.long(), counts[None])
        self.generated.index_copy_(0, lane.long(), generated[None])
        self.bias.index_copy_(0, lane.long(), bias[None])
        self.ends.index_copy_(0, lane.long(), (ends != 0)[None])

    def _places(self, lanes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return (lanes * self._size + tokens).long()

    @property
    def _size(self) -> int:
        return self.counts.shape[1]

    def _write(self, table: torch.Tensor, lane: int, row: npt.NDArray[np.generic]) -> None:
        table[lane] = torch.from_numpy(row).to(table.device)
