"""The description of a model that its package gives, and typed reading of config.json."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

T = TypeVar("T")
ANY = "*"
"""Name of the architecture that runs models whose own architectures no package offers."""


class ConfigError(Exception):
    """config.json lacks something, or asks for something that the architecture or the device cannot do."""


@attrs.frozen(kw_only=True)
class ModelConfig:
    """The facts about a model that the server needs; an architecture adds its own in a subclass."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    """Tokens in the longest sequence that the model was made for."""
    learned_positions: int | None = None
    """Number of positions of a model that has learned each of them; None: it computes them."""
    prefix_limit: int | None = None
    """Length of the longest prompt whose keys do not depend on its length: longer ones share no prefix. None:
    keys never do."""


class JsonReader:
    """A JSON object, read by type: `get(int, "hidden_size")`, `get(float, "rope_theta", 10_000.0)`."""

    def __init__(self, data: Mapping[str, Any], name: str = "config.json") -> None:
        self._data = data
        self._name = name

    def __call__(self, kind: type[T], key: str, default: Any = attrs.NOTHING) -> T:
        """Return the value of `key`, or `default` if missing or null. Raises ConfigError naming the key."""
        value = self._data.get(key)
        if value is None:
            if default is attrs.NOTHING:
                raise ConfigError(f"{self._name} has no {key!r}, which this architecture needs")
            return default  # type: ignore[no-any-return]
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self._name}: {key!r} is {value!r}, expected {kind.__name__}")
        return value

    def size(self, key: str, default: Any = attrs.NOTHING) -> int:
        """Return a whole number above 0, such as a number of heads. Raises ConfigError naming the key."""
        value = self(int, key, default)
        if value < 1:
            raise ConfigError(f"{self._name}: {key!r} is {value}, expected 1 or more")
        return value

    @property
    def data(self) -> Mapping[str, Any]:
        """The whole object."""
        return self._data

    def section(self, key: str) -> "JsonReader | None":
        """Return a reader of the object under `key`; None if it is missing or null."""
        value = self(dict, key, None)
        return None if value is None else JsonReader(value, f"{self._name} {key!r}")


@attrs.frozen
class Architecture:
    """A model class that a package offers for one of config.json's "architectures"."""

    name: str
    model: str
    """The model as "module:Class"; imported in rank processes only."""
    config: Callable[[JsonReader], ModelConfig]
    """Reader of config.json; raises ConfigError."""
