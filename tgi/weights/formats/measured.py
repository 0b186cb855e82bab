"""Dense weights rounded to fp8 (e4m3) at loading, with fixed scales of inputs that were measured."""

import attrs
import torch

from tgi.weights.measurements import Measurements
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader
from .dense import Dense
from .fp8 import FP8, FP8_LIMIT, Fp8Weight, Scale
from .stored import make_dense


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class MeasuredFp8(Dense):
    """Static fp8 of a dense checkpoint; layers that are not chosen stay dense."""

    name = "fp8"

    measured: Measurements

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read and round; numbers that the device does not keep are multiplied by their scales again.

        Parts that are fused have one input scale, the greatest of theirs.
        """
        limit = reader.device.fp8_limit
        inputs = [
            None if part.index is not None else self.measured.input_scale(part.module, limit)
            for part in parts
        ]
        known = [scale for scale in inputs if scale is not None]
        if len(known) < len(parts):
            return super().read(reader, *parts)
        pieces = (self._round(reader, part) for part in parts)
        if "fp8" not in reader.device.keeps:
            dense = (numbers.float() * scales[:, None] for numbers, scales in pieces)
            return make_dense(reader, self.name, parts, dense)
        numbers, scales = zip(*pieces, strict=True)
        for part, piece in zip(parts, numbers, strict=True):
            reader.keep(part.name, part.stored, piece, self.name)
        shared = torch.stack(known).amax() * self._half(reader)
        return Fp8Weight(torch.cat(numbers), torch.cat(scales), Scale.of(shared))

    def cache_scales(self, reader: Reader, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the scales that were measured."""
        found = self.measured.cache_scales(name, reader.device.fp8_limit)
        return found and (found[0] * self._half(reader), found[1] * self._half(reader))

    def _round(self, reader: Reader, part: TensorPart) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers and the scales of the rows of a part."""
        matrix, rule = reader.read_raw(part, torch.float32, kept=False), self.measured.weights
        greatest = matrix.abs().amax(1)
        greatest = greatest if rule.channels else greatest.amax().expand(len(matrix))
        scales = rule.scale(greatest, self.measured.limit(reader.device.fp8_limit)) * self._half(reader)
        return (matrix / scales[:, None]).clamp(-FP8_LIMIT, FP8_LIMIT).to(FP8), scales

    @staticmethod
    def _half(reader: Reader) -> float:
        """Return the factor of scales that are for the device's own range.

        Formats give them for FP8_LIMIT, and a device with half the range doubles them.
        """
        return 0.5 if reader.device.fp8_limit < FP8_LIMIT else 1.0
