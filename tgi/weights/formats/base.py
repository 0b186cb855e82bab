"""The interface of a weight format.

A *format* is how a checkpoint stores the weights of linear layers. Each has a file in this folder with one
subclass of `WeightFormat`, which says when config.json means it and reads weights, and one of `LinearWeight`,
which defines the product in plain torch. `Device.multiply` may be faster for weights that the device knows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

EXPANDED = "expanded"
"""Word in the name of a format, in `tgi plan`, for weights that are made dense while they are loaded."""


class Operations(Protocol):
    """The part of a `tgi.device.Device` that formats use."""

    torch_device: torch.device
    fp8_limit: float
    keeps: frozenset[str]
    """Kinds of numbers that it multiplies as they are stored: "int4", "int8", "fp8" by rows; "nested":
    integers with `shares`, `minima` or a `table` too, and weights of several kinds. "tied": it reads rows of
    prepared weights of integers, and of dense ones in float32 and bfloat16."""

    def prepare_linear(self, weight: "LinearWeight") -> "LinearWeight":
        """Return a weight of any format ready for `multiply`."""

    def prepare_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a dense weight [out, in] in the form in which `linear` is fastest."""

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply with a prepared dense weight."""

    def multiply(
        self,
        x: torch.Tensor,
        weight: "LinearWeight",
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply with a prepared weight of any format."""


class Reader(Protocol):
    """The part of a `tgi.layers.Build` that formats use."""

    @property
    def device(self) -> Operations:
        """The device that the weights are for."""

    def __contains__(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name."""

    def has_shape(self, name: str, shape: list[int]) -> bool:
        """Whether the checkpoint's tensor has that shape."""

    def read(self, *parts: TensorPart, rows: int = 0) -> torch.Tensor:
        """Return parts of dense tensors, one below the other, on the device and in the model's dtype."""

    def read_raw(self, part: TensorPart, dtype: torch.dtype, kept: bool = True) -> torch.Tensor:
        """Return a part of a tensor in the host's memory, which the rank keeps or does not."""

    def read_bytes(self, name: str) -> bytes:
        """Return the bytes of a tensor whose shape only the file knows; none without a file."""

    def keep(
        self,
        name: str,
        shape: Sequence[int],
        tensor: torch.Tensor,
        stored: str = "dense",
        size: int | None = None,
    ) -> None:
        """Take note of a tensor that the rank keeps, in `size` bytes or as many as it has."""

    def dismiss(self, name: str) -> None:
        """Let a tensor be left unread."""

    def skip_zeros(self, name: str) -> None:
        """Let a tensor be left unread if it is there and all its numbers are 0."""

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device, in the model's dtype."""


class LinearWeight(ABC):
    """The weight [out, in] of a linear layer on one rank."""

    def dense(self) -> torch.Tensor:
        """Return the numbers, before `prepare`."""
        raise NotImplementedError

    @abstractmethod
    def prepare(self, device: Operations) -> Self:
        """Return the weight on the device, ready for `multiply`."""

    @abstractmethod
    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return x [n, in] times the weight's transpose, plus bias [out] and residual [n, out]."""

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Return rows [n, in] of a prepared weight by their indices [n]; zeros where it has none."""
        raise NotImplementedError


class PreparedWeight(LinearWeight):
    """A weight in a form that a device gave it, ready for `multiply`."""

    def prepare(self, device: Operations) -> Self:  # noqa: ARG002
        """Return the weight itself."""
        return self


class PiecewiseWeight(PreparedWeight):
    """A weight that a device makes of its rows while they are read; ready once it has all."""

    STEP: ClassVar[int]
    """Divides the number of rows of each piece but the last one."""

    @abstractmethod
    def put(self, first: int, rows: torch.Tensor) -> None:
        """Take the rows [n, in] from `first` on, whose memory is the caller's."""


class WeightFormat(ABC):
    """A way to store weights, with its settings in one checkpoint."""

    name: ClassVar[str]
    """The format's name in `tgi plan`."""
    methods: ClassVar[frozenset[str]] = frozenset()
    """Values of "quant_method" in config.json that may mean this format."""
    scope: ClassVar[str] = ""
    """A noun phrase for the supported variants, for the error about any other."""
    has_tables: ClassVar[bool] = False
    """Whether embeddings and heads have the format, too, as long as no file says otherwise."""

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether a "quantization_config" is of this kind, perhaps a variant with a `fault`."""
        return config(str, "quant_method", "none") in cls.methods

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the reason why a "quantization_config" of this kind is not supported."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:  # noqa: ARG003
        """Return the format with the settings of a "quantization_config" that has no `fault`."""
        return cls()

    def missing(self, reader: Reader, part: TensorPart) -> str | None:  # noqa: ARG002
        """Return the name of a tensor without which the weight `part` is not stored in this format.

        Formats apply per tensor: a weight without these is dense.
        """
        return None

    @abstractmethod
    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read a linear weight whose rows are those of all parts, one below the other.

        Each part is one of the dense weight "….weight" with the shape [out, in], by whose name the format
        finds its own tensors.
        """

    def cache_scales(self, reader: Reader, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:  # noqa: ARG002
        """Return the scales [] of the keys and the values of attention layer `name`; None: it has none."""
        return None
