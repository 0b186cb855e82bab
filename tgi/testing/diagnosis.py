"""Messages of `check_architecture`: the ways of computing a text that are wrong tell where to look."""

from collections.abc import Mapping

from .rank_threads import RanksApartError

WAYS = {
    "decode": "decode steps",
    "scattered": "decode steps over scattered blocks",
    "chunks": "prefill in chunks",
    "together": "prefill of several rows",
    "together decode": "decode steps of several rows",
    "padded": "prefill of several rows and padding",
    "padded decode": "decode steps of several rows and padding",
    "prefix": "prefill after a shared prefix",
    "ranks": "ranks",
    "stages": "stages",
}
DECODE = {"decode", "scattered", "together decode"}
SMALL = 0.02
"""Maximum difference of log-probabilities that a wrong constant makes; wrong wiring makes a larger one."""

_NOT_LOADED = """
A tensor that is missing has another name in model.py than in the checkpoint; one that no layer reads
belongs to a layer that model.py lacks, or is not needed, which `build.weights.dismiss(name)` says; a
shape that is wrong comes of a field of the config that plugin.py reads
"""
_FIRST_TOKEN = """
from the first token on, which sees only itself, so look beside the scores of attention: the order of
norms and residuals, a norm's epsilon or weight (some add 1), the activation, gate and up the wrong way
round, a bias, the scale of embeddings or logits, the values' part of a fused tensor, a head that is tied
"""
_SECOND_TOKEN = """
from the second token on, and the first is right, so look at the scores of attention: its scale, RoPE
(theta, how much of a head is rotated, halves or pairs), norms of queries and keys, a bias of theirs,
which key/value head a query head reads
"""
_SOME_TOKEN = """
from token {} on, and those before are right: a window of attention, or RoPE scaling that begins at a
length
"""
_SMALL = """
The difference is small: an epsilon, another approximation of an activation (gelu, tanh), or something
that is not computed in float32
"""
_STAGES = """
only in stages: what is done before the first layer or after the last one is done in every stage, or a layer
is told another number than `build.layers` yields
"""
_PREFIX = """
only where a prefix is shared with a longer prompt: keys depend on how long the prompt is, which
`ModelConfig.prefix_limit` must say
"""
_TOGETHER = """
only with several rows in a step: something is computed over all tokens of the step (a mean, a maximum, a
capacity), or the last tokens of the rows are not taken from `batch.last`
"""
_DECODE = """
only in decode steps: something depends on a step having one token for each row, or on what an earlier
step left in the model
"""
_CONTEXT = """
only with context in the cache: the positions or the cache slots. Rotate by `batch.positions` and never by
a count of the step's tokens, rotate before the keys are stored, and give every `Attention` the number of
its own layer
"""
_PADDED = """
only with padding: the model reads it. Something is computed over all rows or tokens of the step (a mean,
a maximum, a capacity), and padding counts
"""
_PLAIN = """
all is right with the CPU's operations, which compute no padding: something reads padding or depends on
the number of tokens in a step, or a tensor is changed in place
"""
_CARD = """
all is right with plain torch. A step is recorded once and replayed there: something was decided in Python
from the first step (`.item()`, `if` on a tensor, a counter in the model), or made on the host in forward
"""
_RANKS = """
all is right on one rank: a weight is cut along the wrong dimension or at the wrong place (heads of a
fused tensor), the ranks' parts are not summed (`RowLinear`, or an `all_reduce` that is missing or once
too often), or each rank adds a bias or residual that one should
"""
_NOT_COUNTED = """
a layer reads a tensor from `build.weights` instead of by `build.read` or `build.linear`, or keeps one
twice: then nobody knows how much memory the model needs before it is loaded
"""


def sizes(found: Mapping[str, float]) -> str:
    """Return by how much log-probabilities differ, and in which ways of computing."""
    each = ", ".join(f"{WAYS[name]} by {difference:.1e}" for name, difference in found.items())
    return f"log-probabilities differ: {each}"


def not_loaded(error: Exception) -> str:
    """Return the message for tensors that are missing, left over or of the wrong shape."""
    return f"the model cannot be loaded: {_line(str(error))}. {_line(_NOT_LOADED)}"


def not_as_transformers(difference: float, position: int | None) -> str:
    """Return the message for a model that differs from transformers.

    `position` is the first wrong token in a prefill of the longest prompt alone; None if that is right.
    """
    if position is None:
        what = "in some prompts but not in the longest: what depends on the length of a prompt"
    elif position < 2:
        what = _line((_FIRST_TOKEN, _SECOND_TOKEN)[position])
    else:
        what = _line(_SOME_TOKEN.format(position + 1))
    small = f". {_line(_SMALL)}" if difference < SMALL else ""
    return f"transformers gives something else, {what}; log-probabilities differ by {difference:.1e}{small}"


def on_cpu(found: Mapping[str, float]) -> str:
    """Return the message if a prefill of one whole row is right, and another way is not."""
    wrong = set(found)
    if wrong == {"prefix"}:
        return _line(_PREFIX)
    if wrong <= {"together", "together decode"}:
        return _line(_TOGETHER)
    return _line(_DECODE if wrong <= DECODE else _CONTEXT)


def on_plain(found: Mapping[str, float]) -> str:
    """Return the message if all is right on a CPU, which computes no padding, and not in plain torch."""
    return _line(_PADDED if set(found) <= {"padded", "padded decode"} else _PLAIN)


def on_card(_: Mapping[str, float]) -> str:
    """Return the message if everything is right in plain torch, and not on a card."""
    return _line(_CARD)


def on_ranks(_: Mapping[str, float]) -> str:
    """Return the message if everything is right on one rank, and not on several."""
    return _line(_RANKS)


def on_stages(_: Mapping[str, float]) -> str:
    """Return the message if everything is right in one piece, and not in stages of a pipeline."""
    return _line(_STAGES)


def failed(error: Exception) -> str:
    """Return the message for an exception while computing."""
    line = _line(f"{type(error).__name__}: {error}")
    if isinstance(error, RanksApartError):
        return f"{line}: not every rank calls the same collectives; an `if` on the rank, perhaps"
    return f"it fails: {line}"


def not_counted(rank: int, ranks: int, kept: int, described: int) -> str:
    """Return the message for a model that keeps other tensors than it asked `Build` for."""
    return (
        f"rank {rank} of {ranks} keeps {kept:,} bytes of weights, and its layers have asked for "
        f"{described:,}: {_line(_NOT_COUNTED)}"
    )


def _line(text: str) -> str:
    return " ".join(text.split())
