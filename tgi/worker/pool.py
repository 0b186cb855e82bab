"""`python -m tgi.worker.pool POOLING`: a model of transformers that gives embeddings or scores.

A child of `tgi.child`, which gives it a `Pooling` in JSON. Computes whole texts in batches, padded on the
right, without a KV cache.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import nn

from tgi.parent import Parent, leave
from tgi.plugins import ConfigError
from tgi.protocol.pooling import Opened, PoolBatch, Pooling, Vectors

from .loop import failure

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mean(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the tokens."""
    return (features * mask).sum(1) / mask.sum(1)


def mean_sqrt_len(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the sum over the tokens, divided by the root of their number."""
    return (features * mask).sum(1) / mask.sum(1).sqrt()


def weighted_mean(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the tokens, weighted by their places, from 1."""
    weights = mask * mask.cumsum(1)
    return (features * weights).sum(1) / weights.sum(1)


def greatest(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the greatest value over the tokens."""
    return features.masked_fill(mask == 0, -torch.inf).amax(1)


def first(features: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
    """Return the features of the first token."""
    return features[:, 0]


def last(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the features of the last token."""
    lengths = mask.sum(1).long()
    return features.take_along_dim(lengths[:, None] - 1, 1)[:, 0]


POOLS: Mapping[str, Pool] = MappingProxyType({
    "cls": first,
    "max": greatest,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len,
    "weightedmean": weighted_mean,
    "lasttoken": last,
})  # fmt: skip
"""Functions of features [B, T, size] and mask [B, T, 1], in float32, to vectors [B, size], by
sentence-transformers' names."""


class Pooler:
    """A model and what turns its features into vectors."""

    def __init__(self, pooling: Pooling) -> None:
        """Load the model. Raises ConfigError, OSError, or any error of transformers."""
        from transformers import AutoModel, AutoModelForSequenceClassification

        kind: Any = AutoModelForSequenceClassification if pooling.ranks else AutoModel
        dtype = "auto" if pooling.dtype == "auto" else getattr(torch, pooling.dtype)
        self._model = kind.from_pretrained(pooling.folder, dtype=dtype, local_files_only=True).eval()
        self._ranks = pooling.ranks
        self._pools = [POOLS[mode] for mode in pooling.modes]
        self._dense = [_dense(Path(pooling.folder) / name) for name in pooling.dense]
        config = self._model.config
        self._pad: int | None = getattr(config, "pad_token_id", None)
        self._types = pooling.types and getattr(config, "type_vocab_size", 0) > 1

    @torch.inference_mode()
    def vectors(self, batch: PoolBatch) -> torch.Tensor:
        """Return [B, size] in float32; of a reranker, [B, labels]."""
        if self._ranks and self._pad is None and len(batch.ids) > 1:  # its last token could not be told
            alone = (PoolBatch([one], [kinds]) for one, kinds in zip(batch.ids, batch.types, strict=True))
            return torch.cat([self.vectors(each) for each in alone])
        mask = _padded([[1] * len(one) for one in batch.ids], 0)
        given = {"input_ids": _padded(batch.ids, self._pad or 0), "attention_mask": mask}
        if self._types:
            given["token_type_ids"] = _padded(batch.types, 0)
        out = self._model(**given)
        if self._ranks:
            scores: torch.Tensor = out.logits.float()
            return scores
        features, seen = out.last_hidden_state.float(), mask[..., None].float()
        vectors = torch.cat([pool(features, seen) for pool in self._pools], -1)
        for layer in self._dense:
            vectors = layer(vectors)
        return vectors


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def _dense(folder: Path) -> nn.Module:
    """Read a linear layer and its activation as sentence-transformers stores them."""
    settings = json.loads((folder / "config.json").read_bytes())
    layer = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
    tensors = load_file(folder / "model.safetensors")
    layer.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in tensors.items()})
    path = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    kind = getattr(torch.nn, path.rpartition(".")[2], None)
    if kind is None or not path.startswith("torch.nn.modules."):
        raise ConfigError(f"{folder.name}/config.json: 'activation_function' is {path!r}, which is unknown")
    return nn.Sequential(layer, kind())


def main() -> int:
    """Answer batches until the server closes the socket; return the exit code."""
    parent = Parent.of_this_process()
    parent.leave_together()
    encode = msgspec.msgpack.encode
    try:
        pooling = msgspec.json.decode(sys.argv[1], type=Pooling)
        if pooling.threads:
            torch.set_num_threads(pooling.threads)
        pooler = Pooler(pooling)
        parent.send(encode(Opened(pooler.vectors(PoolBatch([[1, 1]], [[0, 0]])).shape[1])))
        while (payload := parent.receive()) is not None:
            batch = msgspec.msgpack.decode(payload, type=PoolBatch)
            parent.send(encode(Vectors(pooler.vectors(batch).numpy().tobytes())))
    except Exception as error:
        parent.send(encode(failure(error)))
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
