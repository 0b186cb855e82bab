"""Every sampling parameter, declared once.

`SamplingParams` has a field for each, and a `Parameter` beside it. Request bodies, the OpenAPI document, the
parameters of a sequence, the message to the ranks, the columns of a lane, and the parts of the sampler that a
step needs are all made of these. A new parameter is a field here, the lines of the
sampler that apply it, and their test.
"""

import math
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import attrs
import msgspec
from msgspec import Meta

Api = Literal["native", "openai"]
I32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]


@attrs.frozen(kw_only=True)
class Range:
    """The numbers that a client may give."""

    gt: float = -math.inf
    ge: float = -math.inf
    lt: float = math.inf
    le: float = math.inf

    def __contains__(self, value: float) -> bool:
        below = value < self.lt or self.lt == math.inf  # an infinite value is within an open end
        return self.gt < value and self.ge <= value <= self.le and below

    def __str__(self) -> str:
        """Describe the range in TGI's words, after "must be"."""
        if self in (POSITIVE, COUNT):
            return "strictly positive"
        signs = (">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le)
        return " and ".join(f"{sign} {bound}" for sign, bound in signs if math.isfinite(bound))

    def schema(self) -> dict[str, Any]:
        """The keywords of JSON Schema."""
        keywords = {
            "exclusiveMinimum": self.gt,
            "minimum": self.ge,
            "exclusiveMaximum": self.lt,
            "maximum": self.le,
        }
        return {keyword: bound for keyword, bound in keywords.items() if math.isfinite(bound)}


POSITIVE = Range(gt=0.0)
COUNT = Range(ge=1)
_PENALTY = Range(ge=-2.0, le=2.0)
_SHARE = Range(gt=0.0, lt=1.0)


@attrs.frozen(kw_only=True)
class Parameter:
    """Everything about a sampling parameter beyond its name, type and neutral value."""

    description: str
    range: Range | None = None
    native: str = ""
    """Name in the body of TGI's own routes; "": the parameter is not offered there."""
    openai: str = ""
    """Name in the bodies of `/v1`; "": the parameter is not offered there."""
    limit: str = ""
    """Name of the server's limit that is the maximum; "": none is."""
    openai_range: Range | None = None
    """Wider range of `/v1`: there, a value outside of `range` leaves the parameter without effect."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Values beyond have the effect of the bound on a rank, so that scores stay finite in float32."""
    column: Callable[[Any], float] | None = None
    """Computes the number that a rank keeps for a lane; None: the value itself is kept, within `bounds`."""
    on_host: bool = False
    """Whether the sampler's program does without a column for it."""
    history: bool = False
    """Whether its effect depends on the tokens so far."""
    warper: bool = False
    """Whether tokens are drawn on TGI's own routes if it is given there."""

    def name(self, api: Api) -> str:
        """Name in the bodies of an API, or ""."""
        return self.native if api == "native" else self.openai

    def documented_range(self, api: Api) -> Range | None:
        """Range of the values that an API accepts."""
        return self.openai_range or self.range if api == "openai" else self.range


def _float32(value: float) -> float:
    """Return the nearest number that TGI, and every rank, can have."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _log(share: float) -> float:
    return math.log(min(share, 1.0)) if share > 0 else -math.inf


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters of a sequence. The default of every field changes nothing.

    Clients' values are checked in the order of the fields, which is TGI's.
    """

    sample: Annotated[bool, Parameter(description="Draw tokens; otherwise the most likely one is taken.")] = (
        False
    )
    seed: Annotated[
        int,
        Parameter(
            description="Random seed, uint64. A token's random number depends on it and the token's index.",
            on_host=True,
        ),
    ] = 0
    temperature: Annotated[
        float,
        Parameter(
            description="Divides the logits: text is more random above 1 and less random below 1. "
            "On `/v1`, 0 takes the most likely token.",
            range=POSITIVE,
            native="temperature",
            openai="temperature",
            openai_range=Range(ge=0.0),
            bounds=(1e-4, 1e4),
            warper=True,
        ),
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        Parameter(
            description="Divides positive logits, and multiplies negative ones, of tokens that occur in the "
            "prompt or the text. 1 has no effect.",
            range=POSITIVE,
            native="repetition_penalty",
            openai="repetition_penalty",
            bounds=(1e-4, 1e4),
            history=True,
        ),
    ] = 1.0
    frequency_penalty: Annotated[
        float,
        Parameter(
            description="Lowers the logit of a token by its share of all tokens so far, prompt included.",
            range=_PENALTY,
            native="frequency_penalty",
            history=True,
        ),
    ] = 0.0
    count_penalty: Annotated[
        float,
        Parameter(
            description="Lowers the logit of a token each time it is generated.",
            range=_PENALTY,
            openai="frequency_penalty",
            bounds=(-1e4, 1e4),
            history=True,
        ),
    ] = 0.0
    presence_penalty: Annotated[
        float,
        Parameter(
            description="Lowers the logit of a token once it has been generated.",
            range=_PENALTY,
            native="presence_penalty",
            openai="presence_penalty",
            bounds=(-1e4, 1e4),
            history=True,
        ),
    ] = 0.0
    min_p: Annotated[
        float,
        Parameter(
            description="Leaves out tokens that are less likely than this share of the most likely one.",
            range=Range(ge=0.0, le=1.0),
            native="min_p",
            openai="min_p",
            column=_log,
            warper=True,
        ),
    ] = 0.0
    top_p: Annotated[
        float,
        Parameter(
            description="Samples from the most likely tokens that together have this probability. "
            "On `/v1`, 1 has no effect, and 0 takes the most likely token.",
            range=_SHARE,
            native="top_p",
            openai="top_p",
            openai_range=Range(ge=0.0, le=1.0),
            warper=True,
        ),
    ] = 1.0
    typical_p: Annotated[
        float,
        Parameter(
            description="Samples from the tokens of most typical information content that together have this "
            "probability.",
            range=_SHARE,
            native="typical_p",
            openai="typical_p",
            openai_range=Range(gt=0.0, le=1.0),
            warper=True,
        ),
    ] = 1.0
    top_k: Annotated[
        I32,
        Parameter(
            description="Samples from the k most likely tokens. On `/v1`, 0 and -1 have no effect.",
            range=COUNT,
            native="top_k",
            openai="top_k",
            openai_range=Range(ge=-1),
            warper=True,
        ),
    ] = 0
    watermark: Annotated[
        bool,
        Parameter(
            description="Prefers a pseudo-random part of the vocabulary, so that the text can be recognised.",
            native="watermark",
            openai="watermark",
        ),
    ] = False
    logit_bias: Annotated[
        tuple[tuple[int, float], ...],
        Parameter(
            description="Number added to the logit of a token, by token id; each id occurs once.", column=bool
        ),
    ] = ()
    min_tokens: Annotated[
        U32,
        Parameter(
            description="Number of tokens generated before the text may end. No effect beside a grammar.",
            native="min_tokens",
            openai="min_tokens",
            on_host=True,
        ),
    ] = 0
    ends: Annotated[
        tuple[int, ...],
        Parameter(description="Tokens that end the text; given with `min_tokens` only.", on_host=True),
    ] = ()
    top_n_tokens: Annotated[
        U32,
        Parameter(
            description="Number of most likely tokens to report in the place of each token.",
            native="top_n_tokens",
            limit="max_top_n_tokens",
            on_host=True,
        ),
    ] = 0

    @property
    def needs_history(self) -> bool:
        """Whether a penalty looks at the tokens so far."""
        return any(getattr(self, name) != neutral for name, neutral in _HISTORY)


@attrs.frozen(kw_only=True)
class Declared:
    """A field of `SamplingParams` with its declaration."""

    name: str
    type: Any
    """Type for msgspec, with the limits of the integers."""
    neutral: Any
    parameter: Parameter

    def read(self, body: object, api: Api) -> Any:
        """Return the value that a body asks for, or the neutral one. Raises ValueError with the range."""
        given = self.parameter.name(api)
        value = getattr(body, given) if given else None
        if value is None:
            return self.neutral
        if isinstance(value, float):
            value = _float32(value)
        allowed = self.parameter.range
        if allowed is None or value in allowed:
            return value
        if api == "openai" and self.parameter.openai_range and value in self.parameter.openai_range:
            return self.neutral
        raise ValueError(f"`{given}` must be {self.parameter.documented_range(api)}")

    def column(self, params: SamplingParams) -> float:
        """Return the number that a rank keeps for a lane with these parameters."""
        value = getattr(params, self.name)
        if self.parameter.column is not None:
            return self.parameter.column(value)
        least, most = self.parameter.bounds
        return float(min(max(value, least), most))


def _declared() -> tuple[Declared, ...]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    declared = []
    for field in msgspec.structs.fields(SamplingParams):
        kind, *extras = get_args(hints[field.name])
        parameter = next(extra for extra in extras if isinstance(extra, Parameter))
        for extra in extras:
            kind = Annotated[kind, extra] if isinstance(extra, Meta) else kind
        declared.append(Declared(name=field.name, type=kind, neutral=field.default, parameter=parameter))
    return tuple(declared)


DECLARED = _declared()
COLUMNS = {declared.name: declared for declared in DECLARED if not declared.parameter.on_host}
"""Parameters of which the sampler gets a column, with a number for each row."""
FLOATS = tuple(name for name, declared in COLUMNS.items() if isinstance(declared.neutral, float))
INTS = tuple(name for name in COLUMNS if name not in FLOATS)
NEUTRAL = {name: declared.column(SamplingParams()) for name, declared in COLUMNS.items()}
"""Number in each column that has no effect."""
WARPERS = tuple(declared for declared in DECLARED if declared.parameter.warper)
_HISTORY = tuple((declared.name, declared.neutral) for declared in DECLARED if declared.parameter.history)


def about(description: str = "", *, limit: str = "", at_least: int = 0, **keywords: Any) -> Meta:
    """Describe a field of a request for the OpenAPI document.

    `limit` names the limit of the server that is the field's maximum, if it is not below `at_least`. Further
    keywords are JSON Schema's and win over those of the field's type. Values that fit the type but not these
    are refused by validation, in TGI's words.
    """
    extra: dict[str, Any] = {"x-accepted": keywords} if keywords else {}
    if limit:
        extra["x-limit"] = {"name": limit, "at_least": at_least}
    return Meta(description=description or None, extra_json_schema=extra or None)


def body_fields(api: Api) -> list[tuple[str, Any, Any]]:
    """Return the fields for the body of an API, as `msgspec.defstruct` takes them; null is neutral."""
    fields: list[tuple[str, Any, Any]] = []
    for declared in DECLARED:
        name, accepted = declared.parameter.name(api), declared.parameter.documented_range(api)
        if name:
            keywords = accepted.schema() if accepted else {}
            meta = about(declared.parameter.description, limit=declared.parameter.limit, **keywords)
            nullable = api == "openai" or declared.type is not bool
            kind: Any = Annotated[declared.type | None if nullable else declared.type, meta]
            fields.append((name, kind, None if nullable else declared.neutral))
    return fields


def read_body(body: object, api: Api, **others: Any) -> SamplingParams:
    """Return the parameters that a body asks for; `others` have no field of that name, or another meaning.

    Raises ValueError, in TGI's words for TGI's ranges, for a value out of range.
    """
    values = {declared.name: declared.read(body, api) for declared in DECLARED if declared.name not in others}
    return SamplingParams(**values, **others)


if TYPE_CHECKING:

    class NativeFields(msgspec.Struct, kw_only=True):
        """Fields for bodies of TGI's own routes."""

        def __getattr__(self, name: str) -> Any: ...

    class OpenAIFields(NativeFields, kw_only=True):
        """Fields for bodies of `/v1`."""

else:
    NativeFields = msgspec.defstruct("NativeFields", body_fields("native"), kw_only=True)
    OpenAIFields = msgspec.defstruct("OpenAIFields", body_fields("openai"), kw_only=True)
