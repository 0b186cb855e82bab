"""Tables that the sampler keeps on the device: for each lane, numbers for every token of the vocabulary.

A lane's rows are written when a sequence enters it that uses them, and are stale otherwise: a reader looks at
the lane's parameters first.
"""

import numpy as np
import numpy.typing as npt
import torch

from tgi.device.base import Device
from tgi.protocol import LaneParams, unpack_ints

_MAX_BIAS = 1e4
"""A greater bias has the effect of this one: the scores stay finite in float32."""


def entries_of(params: LaneParams, size: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return what a sequence brings into the tables: token ids [n], each once, and their numbers [4, n].

    The numbers are how often the sequence has the token, how often of these it was generated, the bias, and
    1 if the token would end the text. Ids beyond the vocabulary are left out, and so are ends that would
    leave no token at all.
    """
    history = unpack_ints(params.history)
    generated = history[params.prompt_length or len(history) :]
    biased = [token for token, _ in params.sampling.logit_bias]
    ends = {token for token in params.sampling.ends if token < size}
    if len(ends) == size:
        ends = set()
    ids = np.unique(np.concatenate((history, np.array([*biased, *ends], np.int32))))
    numbers = np.zeros((4, len(ids)), np.float32)
    np.add.at(numbers[0], np.searchsorted(ids, history), 1)
    np.add.at(numbers[1], np.searchsorted(ids, generated), 1)
    for token, bias in params.sampling.logit_bias:
        numbers[2, np.searchsorted(ids, token)] = min(max(bias, -_MAX_BIAS), _MAX_BIAS)
    numbers[3, np.searchsorted(ids, [*ends])] = 1
    known = ids < size
    return ids[known].astype(np.int32), numbers[:, known]


class Tables:
    """The tables of one rank, [lanes * vocab] each.

    Together they take `tgi.footprint.TABLE_BYTES` for each token of each lane. They are flat because a device
    that compiles may not update a tensor through a view of it.
    """

    def __init__(self, lanes: int, vocab_size: int, device: Device) -> None:
        def table(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(lanes * vocab_size, dtype=dtype, device=device.torch_device)

        self.size = vocab_size
        # Counts are in float32, since not every device adds integers by index.
        self.counts = table(torch.float32)
        """How often the sequence has the token."""
        self.generated = table(torch.float32)
        """How often of these the token was generated."""
        self.bias = table(torch.float32)
        """Number added to the token's score."""
        self.ends = table(torch.bool)
        """Whether the token would end the text."""

    def rows(self, table: torch.Tensor, lanes: torch.Tensor) -> torch.Tensor:
        """Read the rows of some lanes [n] from a table, [n, vocab]."""
        return table.view(-1, self.size).index_select(0, lanes)

    def count(self, lanes: torch.Tensor, tokens: torch.Tensor) -> None:
        """Count that the sequences of the lanes [n] go on with generated tokens [n]."""
        places = (lanes * self.size + tokens).long()
        ones = torch.ones_like(places, dtype=torch.float32)
        self.counts.scatter_add_(0, places, ones)
        self.generated.scatter_add_(0, places, ones)

    def enter(self, lane: torch.Tensor, keep: torch.Tensor, ids: torch.Tensor, numbers: torch.Tensor) -> None:
        """Write a lane's [1] rows: `numbers` [4, n] of the tokens `ids` [n], as `entries_of` has them.

        `keep` [1] is 1 to add to the rows, and 0 to begin them anew. The id of padding is the size of the
        vocabulary.
        """
        rows = numbers.new_zeros(4, self.size + 1).scatter_(1, ids.long().expand(4, -1), numbers)
        places = (lane * self.size + torch.arange(self.size, dtype=torch.int32, device=lane.device)).long()
        for table, row in zip((self.counts, self.generated, self.bias, self.ends), rows, strict=True):
            whole = row[: self.size] + keep * self.rows(table, lane)[0]
            table.index_copy_(0, places, whole.to(table.dtype))
