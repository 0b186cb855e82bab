"""Dense weights with scales for keys and values in 8 bits, as the library compressed-tensors writes them."""

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .compressed import fault_beside_weights, groups_of
from .dense import DenseWeight
from .fp8 import ScaledCache


class CacheOnly(ScaledCache, WeightFormat):
    """Plain numbers, and scales of the cache."""

    name = "dense"
    methods = frozenset({"compressed-tensors"})
    scope = "dense weights with scales of an fp8 KV cache"

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether no layer has a format."""
        return super().means(config) and not groups_of(config)

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for something else."""
        empty = None if config.data.get("kv_cache_scheme") else "'config_groups' is empty"
        return fault_beside_weights(config) or empty

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read the tensors themselves."""
        return DenseWeight(reader.read(*parts))
