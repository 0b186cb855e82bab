"""Linear layers that are divided over the ranks, the token embedding, and the head that gives logits."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tgi.device import decoder
from tgi.device.batch import Batch
from tgi.weights import TensorPart
from tgi.weights.formats import LinearWeight

from .build import Build


class _OwnRows(nn.Module):
    """A linear layer of whose output features each rank has some."""

    def __init__(self, build: Build, weight: Sequence[TensorPart], bias: Sequence[TensorPart]) -> None:
        super().__init__()
        self._device = build.device
        self._weight = build.linear(*weight)
        self._bias = build.read(*bias) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [T, in_features] to [T, this rank's part of all out_features]."""
        return self._device.multiply(x, self._weight, self._bias)

    def describe(self) -> decoder.Linear:
        """Return the layer for `Device.join_layers`."""
        return decoder.Linear(self._weight, self._bias)


class ColumnLinear(_OwnRows):
    """A linear layer whose output features are divided over the ranks; it may fuse several tensors.

    `out_features[i]` counts the features of the tensor `names[i]` on all ranks, or of the i-th part of the
    only tensor. They come in `pieces[i]` pieces that stay whole, as heads do; more ranks than pieces share
    them. The output of a rank is its part of the first features, then its part of the second ones, and so on.
    `transposed`: the checkpoint has the weight as [in, out].
    """

    def __init__(
        self,
        build: Build,
        names: Sequence[str],
        in_features: int,
        out_features: Sequence[int],
        bias: bool = False,
        pieces: Sequence[int] | None = None,
        transposed: bool = False,
    ) -> None:
        whole: Sequence[int | None] = [None] * len(out_features) if pieces is None else pieces
        cuts = [build.shard.cut(*size) for size in zip(out_features, whole, strict=True)]

        def fused(kind: str, *rest: int) -> list[TensorPart]:
            turned = transposed and bool(rest)
            if len(names) == len(out_features):
                parts = zip(names, out_features, cuts, strict=True)
                return [
                    TensorPart(f"{name}.{kind}", (size, *rest), 0, cut, turned) for name, size, cut in parts
                ]
            shape, starts = (sum(out_features), *rest), [0, *itertools.accumulate(out_features)]
            moved = [
                slice(start + cut.start, start + cut.stop) for start, cut in zip(starts, cuts, strict=False)
            ]
            return [TensorPart(f"{names[0]}.{kind}", shape, 0, cut, turned) for cut in moved]

        super().__init__(build, fused("weight", in_features), fused("bias") if bias else ())


class GroupedQKV(_OwnRows):
    """A projection to queries, keys and values whose tensor has them by key/value head.

    Each of the num_kv_heads groups has num_heads / num_kv_heads query heads, a key head and a value head, of
    `head_dim` rows each: one key/value head for all queries, and one for each, are special cases. The
    output is the input of `Attention`: this rank's queries, then keys, then values.
    """

    def __init__(
        self,
        build: Build,
        name: str,
        in_features: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
    ) -> None:
        mine, groups = build.shard.cut(num_heads), range(num_kv_heads)[build.shard.kv_heads(num_kv_heads)]
        readers = num_heads // num_kv_heads
        count = min(readers, mine.stop - mine.start)

        def rows(group: int, head: int, heads: int = 1) -> slice:
            start = (group * (readers + 2) + head) * head_dim
            return slice(start, start + heads * head_dim)

        cuts = [rows(group, max(0, mine.start - group * readers), count) for group in groups]
        cuts += [rows(group, head) for head in (readers, readers + 1) for group in groups]

        def fused(kind: str, *rest: int) -> list[TensorPart]:
            shape = ((num_heads + 2 * num_kv_heads) * head_dim, *rest)
            return [TensorPart(f"{name}.{kind}", shape, 0, cut) for cut in cuts]

        super().__init__(build, fused("weight", in_features), fused("bias") if bias else ())


class RowLinear(nn.Module):
    """A linear layer whose input features are divided over the ranks, which sum their partial results.

    Bias and residual are in the sum once: the first rank adds them, and the others add zeros, so that all do
    the same operations.
    """

    def __init__(
        self,
        build: Build,
        name: str,
        in_features: int,
        out_features: int,
        bias: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self._device = build.device
        self._shard = build.shard
        part, shape = build.shard.cut(in_features), (out_features, in_features)
        self._weight = build.linear(TensorPart(f"{name}.weight", shape, 1, part, transposed))
        self._bias = build.read(TensorPart(f"{name}.bias", (out_features,))) if bias else None
        self._on_first_rank = build.on_first_rank
        if self._bias is not None and self._shard.rank:
            self._bias.zero_()

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        partial: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map [T, this rank's part of in_features] to [T, out_features], plus the residual of that shape.

        Two layers whose results are added need one sum over the ranks: the second takes the result of the
        first's `partial` as `partial`, instead of a residual.
        """
        y = self.partial(x, residual) if partial is None else self._multiply(x, partial)
        return self._device.all_reduce(y, self._shard)

    def partial(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return this rank's summand of the result."""
        if residual is not None and self._shard.size > 1:
            residual = residual * self._on_first_rank
        return self._multiply(x, residual)

    def describe(self) -> decoder.Linear | None:
        """Return the layer for `Device.join_layers`; None if other ranks have a part of it."""
        return decoder.Linear(self._weight, self._bias) if self._shard.size == 1 else None

    def _multiply(self, x: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        return self._device.multiply(x, self._weight, self._bias, added)


class Embedding(nn.Module):
    """The token embedding, whose vocabulary is divided over the ranks, and filled up with zeros.

    Where a head has the same weight, and the device can read rows of that, the head's is the only one. The
    integers of a checkpoint may stay as they are.
    """

    def __init__(self, build: Build, name: str, vocab_size: int, size: int) -> None:
        super().__init__()
        self._device = build.device
        self._shard = build.shard
        self._dtype = build.dtype
        self._head: LinearWeight | None = None
        part, rows = _rows(build, f"{name}.weight", [vocab_size, size])
        if build.joins_tied(name):
            self._head = build.tied[name] = build.head(part, rows)
        elif build.keeps_table(part, rows):
            self._head = build.head(part, rows)
        else:  # and zeros for the tokens of other ranks
            self._weight = build.read_table(part, rows + (build.shard.size > 1))
        first = build.shard.rows(vocab_size).start
        # Not a number, which would be a constant of the rank's graph.
        self._first = torch.tensor([first], dtype=torch.int32).to(build.device.torch_device)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the features [T, size] of token ids [T], alike on all ranks."""
        if self._head is not None:
            rows = self._head.take(tokens - self._first).to(self._dtype)
            return self._device.all_reduce(rows, self._shard)
        if self._shard.size == 1:
            return F.embedding(tokens, self._weight)
        last = self._weight.shape[0] - 1
        rows = tokens - self._first
        rows = torch.where((rows >= 0) & (rows < last), rows, last)
        return self._device.all_reduce(F.embedding(rows, self._weight), self._shard)


class Head(nn.Module):
    """Linear layer from the last layer's features to logits, whose vocabulary is divided over the ranks.

    It is padded where it does not divide. `name` is the embedding's where the two are tied; `bias` names the
    module that has the bias, None for no bias. Logits are multiplied by `scale`, and then capped:
    softcap * tanh(logit / softcap). `unit`: the rows of the weight are divided by their lengths.
    """

    reads: ClassVar[frozenset[str]] = frozenset(("last", "features"))
    """Fields of a batch that it looks at."""

    def __init__(
        self,
        build: Build,
        name: str,
        vocab_size: int,
        size: int,
        bias: str | None = None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        """Number of features that it takes."""
        self._scale, self._softcap = scale, softcap
        self._device = build.device
        self._shard = build.shard
        self._vocab_size = vocab_size
        shared = None if unit else build.tied.get(name)
        if shared is None:
            shared = build.head(*_rows(build, f"{name}.weight", [vocab_size, size]), unit=unit)
        self._weight = shared
        self._bias = None
        if bias is not None:
            part, rows = _rows(build, f"{bias}.bias", [vocab_size])
            self._bias = build.read(part, rows=rows)

    def forward(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Map features [T, size] to logits of `batch.last` [n, vocab_size], alike on all ranks."""
        if batch.features is not None:
            batch.features.index_copy_(0, torch.arange(x.shape[0], device=x.device), x)
        return self._logits(x if batch.last.shape[0] == x.shape[0] else x.index_select(0, batch.last))

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        if not x.shape[0]:
            return x.new_empty(0, self._vocab_size)
        logits = self._device.multiply(x, self._weight, self._bias)
        if self._scale != 1:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = (logits / self._softcap).tanh() * self._softcap
        return self._device.all_gather(logits, self._shard)[:, : self._vocab_size]

    def answer(
        self, x: torch.Tensor, targets: torch.Tensor, top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of the targets [n] after features [n, size], and the best tokens.

        These are ids and log-probabilities [n, top]. A target of -1 has NaN.
        """
        logits = self._logits(x).float()
        logprobs = logits - logits.logsumexp(-1, keepdim=True)
        chosen = logprobs.gather(1, targets.clamp_min(0)[:, None].long())[:, 0]
        return chosen.masked_fill(targets < 0, torch.nan), *self._device.most_likely(logprobs, top)


def _rows(build: Build, name: str, shape: Sequence[int]) -> tuple[TensorPart, int]:
    """Return this rank's rows of a tensor, and the number that every rank has, zeros included."""
    return TensorPart(name, shape, 0, build.shard.rows(shape[0])), build.shard.share(shape[0])
