"""What the sampler keeps on the device for each lane: a value for every token of the vocabulary.

A lane's rows hold what they held before unless the sequence that enters it has a use for them; whoever reads
them looks at the lane's parameters first.
"""

import numpy as np
import numpy.typing as npt
import torch

from tgi.device import Device
from tgi.protocol import LaneParams, unpack_floats, unpack_ints

_MOST_BIAS = 1e4
"""What lies beyond has the effect of the bound: the scores stay finite in float32."""


class Tables:
    """[lanes, vocab] each; together tgi.footprint.TABLE_BYTES for one token of one lane."""

    def __init__(self, lanes: int, vocab_size: int, device: Device) -> None:
        def empty(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(lanes, vocab_size, dtype=dtype, device=device.torch_device)

        self.counts = empty(torch.int32)
        """How often the sequence has the token."""
        self.generated = empty(torch.int32)
        """How often of these it was generated."""
        self.bias = empty(torch.float32)
        """What is added to the token's score."""
        self.ends = empty(torch.bool)
        """Whether the token would end the text."""

    def start(self, params: LaneParams) -> None:
        """A sequence enters a lane. Ids that the vocabulary does not have are passed over."""
        if params.history:
            history = unpack_ints(params.history)
            prompt = params.prompt_length or len(history)
            self._write(self.counts, params.lane, self._count(history))
            self._write(self.generated, params.lane, self._count(history[prompt:]))
        if params.bias_ids:
            bias = np.zeros(self._size, np.float32)
            ids, values = unpack_ints(params.bias_ids), unpack_floats(params.bias_values)
            bias[ids[ids < self._size]] = values[ids < self._size].clip(-_MOST_BIAS, _MOST_BIAS)
            self._write(self.bias, params.lane, bias)
        if params.ends:
            ends = np.zeros(self._size, np.bool_)
            ids = unpack_ints(params.ends)
            ends[ids[ids < self._size]] = True
            self._write(self.ends, params.lane, ends & (not ends.all()))  # something must be left

    def count(self, lanes: torch.Tensor, tokens: torch.Tensor) -> None:
        """Each lane's sequence goes on with a token that was generated."""
        ones = torch.ones_like(tokens, dtype=torch.int32)
        self.counts.index_put_((lanes, tokens), ones, accumulate=True)
        self.generated.index_put_((lanes, tokens), ones, accumulate=True)

    @property
    def _size(self) -> int:
        return self.counts.shape[1]

    def _count(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return np.bincount(tokens, minlength=self._size).astype(np.int32)

    def _write(self, table: torch.Tensor, lane: int, row: npt.NDArray[np.generic]) -> None:
        table[lane] = torch.from_numpy(row).to(table.device)
