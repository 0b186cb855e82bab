"""The description of a model that its package gives, and typed reading of config.json."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

T = TypeVar("T")
ANY = "*"
"""Name of the architecture that runs models whose own architectures no package offers."""


class ConfigError(Exception):
    """config.json lacks something, or asks for something that the architecture or the device cannot do."""


@attrs.frozen
class Weight:
    """A tensor of a checkpoint that the ranks keep."""

    name: str
    shape: tuple[int, ...]
    split: int | None = None
    """The dimension that is divided over the ranks; None: every rank keeps all of it."""
    pieces: int | None = None
    """Into how many pieces at most: more ranks share them, as they do key/value heads."""
    shared: int | None = None
    """How much of that dimension is in pieces, the rest being divided freely; None: all of it."""

    def size(self, ranks: int = 1) -> int:
        """How many numbers a rank keeps of it; where they cannot be equal, the most."""
        lengths = list(self.shape)
        if self.split is not None:
            whole, pieces = lengths[self.split], ranks if self.pieces is None else min(ranks, self.pieces)
            shared = whole if self.shared is None else self.shared
            lengths[self.split] = -(-(whole - shared) // ranks) - (-shared // pieces)
        return math.prod(lengths)


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
    window: int | None = None
    """How many tokens a token sees at most in every layer, itself included; None where one sees all. What is
    behind it leaves the KV cache."""

    changes_scores: bool = False
    """Whether a layer does more to a score than scale and hide it, which takes memory: slopes, or a cap."""

    fp8: bool = False
    """Whether linear layers have weights and inputs in fp8, where the checkpoint has scales for them."""

    def weights(self) -> Sequence[Weight]:
        """Every tensor that the layers keep, twice if they do so twice. `tgi plan` counts them.

        Without them, it goes by the files of the checkpoint, and takes all to be divided over the ranks.
        """
        return ()

    def divides(self, ranks: int) -> bool:
        """Whether so many ranks can share the model: by its heads. An architecture says what else must come
        out even."""
        whole = self.num_kv_heads % ranks == 0 or ranks % self.num_kv_heads == 0
        return self.num_heads % ranks == 0 and whole

    def check_ranks(self, ranks: int) -> None:
        """Raises ConfigError, which names the numbers that are possible."""
        if not self.divides(ranks):
            possible = [count for count in range(1, self.num_heads + 1) if self.divides(count)]
            raise ConfigError(
                f"a model with {self.num_heads} heads and {self.num_kv_heads} key/value heads cannot be "
                f"divided over {ranks} ranks; --num-shard can be {', '.join(map(str, possible))}"
            )

    @property
    def widest(self) -> int:
        """Most features that a linear layer gives one token, all ranks together, for the same purpose."""
        return 8 * self.hidden_size


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
