"""What a model package says of itself, and typed reading of config.json."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

T = TypeVar("T")
ANY = "*"
"""The name of the architecture that is taken where nobody offers one of those in config.json."""


class ConfigError(Exception):
    """config.json lacks something, or has it in a form that the architecture cannot use."""


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
    """What the server must know of any model; an architecture adds fields of its own by inheriting."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    """Tokens in the longest sequence that the model was made for."""
    learned_positions: int | None = None
    """How many positions there are, where each has been learned by itself; None: any can be computed."""
    prefix_limit: int | None = None
    """Prompts longer than this have keys that depend on their length, and share none; None: none has."""
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
    """Typed reading of a JSON object: `get(int, "hidden_size")`, `get(float, "rope_theta", 10_000.0)`."""

    def __init__(self, data: Mapping[str, Any], name: str = "config.json") -> None:
        self._data = data
        self._name = name

    def __call__(self, kind: type[T], key: str, default: Any = attrs.NOTHING) -> T:
        """The value of `key`; `default` where it is missing or null. Raises ConfigError naming the key."""
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
        """A whole number above 0, as a number of heads is. Raises ConfigError naming the key."""
        value = self(int, key, default)
        if value < 1:
            raise ConfigError(f"{self._name}: {key!r} is {value}, expected 1 or more")
        return value

    @property
    def data(self) -> Mapping[str, Any]:
        """The whole object."""
        return self._data

    def section(self, key: str) -> "JsonReader | None":
        """A reader of the object under `key`; None where it is missing or null."""
        value = self(dict, key, None)
        return None if value is None else JsonReader(value, f"{self._name} {key!r}")


@attrs.frozen
class Architecture:
    """One entry of config.json's "architectures" that a package can run."""

    name: str
    model: str
    """"module:Class"; imported in rank processes only."""
    config: Callable[[JsonReader], ModelConfig]
    """Reads config.json; raises ConfigError."""
