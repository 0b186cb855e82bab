"""The description of a model that its package gives, and typed reading of config.json."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from .fields import HARMLESS, NEUTRAL

T = TypeVar("T")
_NONE: Mapping[str, Any] = MappingProxyType({})
_SHOWN = 60
"""Characters of a value in a message."""
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
    wide_scores: bool = False
    """Whether the scores of attention are so large that they need float32 in a model of any dtype."""


class JsonReader:
    """A JSON object, read by type: `get(int, "hidden_size")`, `get(float, "rope_theta", 10_000.0)`.

    It remembers which keys were read: `Architecture.read` refuses the others.
    """

    def __init__(self, data: Mapping[str, Any], name: str = "config.json") -> None:
        self._data = data
        self._name = name
        self._read: set[str] = set()
        self._sections: dict[str, JsonReader] = {}
        self._names: Mapping[str, str] = {}
        self._defaults: Mapping[str, Any] = {}

    def adapted(self, names: Mapping[str, str] = _NONE, defaults: Mapping[str, Any] = _NONE) -> "JsonReader":
        """Return a reader of the same object for code that has the keys and defaults of another family.

        It finds a key under its other name in `names`, if the object has that, and gives a missing key the
        value in `defaults`. Both readers know what has been read.
        """
        other = JsonReader(self._data, self._name)
        other._read, other._sections = self._read, self._sections
        other._names, other._defaults = {**self._names, **names}, {**self._defaults, **defaults}
        return other

    def __call__(self, kind: type[T], key: str, default: Any = attrs.NOTHING) -> T:
        """Return the value of `key`, or `default` if missing or null. Raises ConfigError naming the key."""
        key = self._key(key)
        self._read.add(key)
        value = self._data.get(key, self._defaults.get(key))
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
            raise ConfigError(f"{self._name}: {self._key(key)!r} is {value}, expected 1 or more")
        return value

    def optional_size(self, key: str) -> int | None:
        """Return a whole number above 0, or None if it is missing or null. Raises ConfigError."""
        return None if self(int, key, None) is None else self.size(key)

    def positive(self, key: str, default: Any = attrs.NOTHING) -> Any:
        """Return a number above 0, such as a scale, or `default`. Raises ConfigError naming the key."""
        value = self(float, key, default)
        if value is not None and value <= 0:
            raise ConfigError(f"{self._name}: {self._key(key)!r} is {value}, expected more than 0")
        return value

    def __contains__(self, key: str) -> bool:
        """Whether the object has the key, which does not count as read."""
        return self._key(key) in self._data

    def _key(self, key: str) -> str:
        other = self._names.get(key, key)
        return other if other in self._data else key

    @property
    def data(self) -> Mapping[str, Any]:
        """The whole object, of which nothing counts as read."""
        return self._data

    def all(self) -> Mapping[str, Any]:
        """Return the whole object for a library that reads it by itself: every key counts as read."""
        self._read.update(self._data)
        return self._data

    def section(self, key: str) -> "JsonReader | None":
        """Return the reader of the object under `key`; None if it is missing or null."""
        value = self(dict, key, None)
        if value is None:
            return None
        return self._sections.setdefault(key, JsonReader(value, f"{self._name} {key!r}"))

    def unread(self) -> Iterator[tuple[str, str, Any]]:
        """Yield the place, key and value of each field that has not been read, those of sections too."""
        for key, value in self._data.items():
            if key not in self._read:
                yield self._name, key, value
        for section in self._sections.values():
            yield from section.unread()


@attrs.frozen
class Architecture:
    """A model class that a package offers for one of config.json's "architectures"."""

    name: str
    model: str
    """The model as "module:Class"; imported in rank processes only."""
    config: Callable[[JsonReader], ModelConfig]
    """Reader of config.json; raises ConfigError."""
    harmless: frozenset[str] = frozenset()
    """Fields of config.json that change no number, beside `tgi.plugins.fields.HARMLESS`."""
    neutral: Mapping[str, tuple[Any, ...]] = attrs.field(factory=dict)
    """Values with which a field that `config` does not read changes no number, beside those of `NEUTRAL`."""

    def read(self, data: Mapping[str, Any]) -> ModelConfig:
        """Read config.json. Raises ConfigError, also for a field neither read nor known to be harmless."""
        reader = JsonReader(data)
        try:
            config = self.config(reader)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"config.json makes no sense to {self.name}: {error!r}") from error
        refuse_unread(self.name, reader.unread(), self.harmless, self.neutral)
        return config


def refuse_unread(
    architecture: str,
    fields: Iterable[tuple[str, str, Any]],
    harmless: frozenset[str],
    neutral: Mapping[str, tuple[Any, ...]],
) -> None:
    """Raise ConfigError for the first of the fields (place, key, value) that may change a number.

    `harmless` and `neutral` are those of an `Architecture`. A value of null changes nothing.
    """
    harmless, neutral = HARMLESS | harmless, {**NEUTRAL, **neutral}
    for place, key, value in fields:
        if value is not None and key not in harmless and value not in neutral.get(key, ()):
            shown = repr(value)
            shown = shown if len(shown) < _SHOWN else f"{shown[:_SHOWN]}…"
            reason = f"which {architecture} does not know here; it might change the text"
            raise ConfigError(f"{place}: {key!r} is {shown}, {reason}")
