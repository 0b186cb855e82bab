"""JSON of TGI's own routes (tgi-behaviour 2.2, 3.1, 3.2), and fields that the other APIs have as well."""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tgi.errors import ValidationError
from tgi.limits import Limits
from tgi.sampling import I32, U32, WARPERS, NativeFields, about
from tgi.text.grammar import GrammarSpec
from tgi.text.stopping import FinishReason

from . import refused
from .refused import refusing
from .validate import grammar_spec

USize = Annotated[int, Meta(ge=0)]
MAX_SEED = 2**64 - 1
SEED = "Random seed. The same seed reproduces the same text; null picks one at random."
STOP = about("Strings that end the text.", limit="max_stop_sequences")
TokenId = Annotated[U32, about(limit="last_token")]
MaxTokens: TypeAlias = Annotated[
    U32 | None, about("Maximum number of tokens to generate; null: as many as fit.", minimum=1)
]
ModelName: TypeAlias = Annotated[
    str | None, about("Name of a LoRA adapter. Any other means the model, unless there can be adapters.")
]
Priority: TypeAlias = Annotated[
    I32 | None, about("Place in the queue: lower comes first, among a tenant's requests if there are any.")
]

# Requests

_SCHEMAS = [{"type": kind} for kind in ("object", "boolean", "string")]
Schema = Annotated[Any, about("A JSON schema, or a string that holds one.", anyOf=_SCHEMAS)]


class JsonGrammar(msgspec.Struct, tag_field="type", tag="json"):
    """A JSON schema that the text obeys."""

    value: Schema

    @property
    def spec(self) -> GrammarSpec:
        """Grammar for the compiler. Raises ValidationError."""
        return grammar_spec("json", self.value)


class JsonObjectGrammar(JsonGrammar, tag="json_object"):
    """Another name of the type `json`."""


class RegexGrammar(msgspec.Struct, tag_field="type", tag="regex"):
    """A regular expression that the whole text matches."""

    value: str

    @property
    def spec(self) -> GrammarSpec:
        """Grammar for the compiler."""
        return grammar_spec("regex", self.value)


class JsonSchemaConfig(msgspec.Struct):
    """A JSON schema with a name."""

    schema: Schema
    name: str | None = None
    strict: Annotated[
        bool | None,
        about("false: take the schema as it is, with open objects; leave out what cannot be enforced."),
    ] = None


class JsonSchemaGrammar(msgspec.Struct, tag_field="type", tag="json_schema"):
    """A JSON schema that the text obeys, with a name."""

    value: JsonSchemaConfig

    @property
    def spec(self) -> GrammarSpec:
        """Grammar for the compiler. Raises ValidationError."""
        return grammar_spec("json", self.value.schema, self.value.strict)


Grammar: TypeAlias = JsonGrammar | JsonObjectGrammar | RegexGrammar | JsonSchemaGrammar


@refusing(refused.NATIVE)
class GenerateParameters(NativeFields, kw_only=True):
    """Parameters of a generation (tgi-behaviour 2.2)."""

    best_of: Annotated[USize | None, about("Texts of which the best counts.", limit="max_best_of")] = None
    do_sample: Annotated[bool, about("Draw the tokens even if no other parameter implies it.")] = False
    max_new_tokens: MaxTokens = None
    return_full_text: Annotated[bool | None, about("Put the prompt before the text.")] = None
    stop: Annotated[list[str], STOP] = msgspec.field(default_factory=list)
    truncate: Annotated[
        USize | None, about("Tokens at the prompt's end that count.", limit="max_input_tokens", minimum=1)
    ] = None
    details: Annotated[bool, about("Report each token.")] = False
    decoder_input_details: Annotated[bool, about("Report each token of the prompt. Not for streams.")] = False
    seed: Annotated[USize | None, about(f"{SEED} Not with `best_of`.", maximum=MAX_SEED)] = None
    grammar: Annotated[Grammar | None, about("Grammar that the text obeys.")] = None
    ignore_eos: Annotated[bool, about("Go on after the model's end tokens.")] = False
    stop_token_ids: Annotated[list[TokenId] | None, about("Tokens that end the text.")] = None
    priority: Priority = None
    adapter_id: Annotated[str | None, about("Name of a LoRA adapter.")] = None

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed > MAX_SEED:
            raise ValueError(f"Expected `seed` <= {MAX_SEED}")

    def samples(self) -> bool:
        """Return whether tokens are drawn (S1)."""
        return self.do_sample or any(value != neutral for value, neutral in self.warpers())

    def warpers(self) -> list[tuple[float, float]]:
        """Return the warpers that are given, with their neutral values."""
        return [
            (value, warper.neutral)
            for warper in WARPERS
            if warper.parameter.native and (value := getattr(self, warper.parameter.native)) is not None
        ]

    def count(self, limits: Limits) -> int:
        """Return the number of sequences (V03, V04); 0 counts as 1. Raises ValidationError."""
        best_of = self.best_of or 1
        if best_of > 1 and limits.max_best_of == 1:
            raise ValidationError("`best_of` != 1 is not allowed for this endpoint")
        if best_of > limits.max_best_of:
            raise ValidationError(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
        return best_of

    def check_streamable(self) -> None:
        """Raise ValidationError if the answer cannot be streamed (V01, V02)."""
        if self.best_of not in (None, 1):
            raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
        if self.decoder_input_details:
            raise ValidationError("`decoder_input_details` == true is not supported when streaming tokens")


def default_parameters() -> GenerateParameters:
    """Return the parameters of a request without any: it samples, one with an empty object does not."""
    return GenerateParameters(do_sample=True)


class GenerateRequest(msgspec.Struct):
    """The body of `/generate`, `/generate_stream` and `/tokenize`."""

    inputs: Annotated[str, about("The prompt.")]
    parameters: Annotated[
        GenerateParameters,
        about("How to generate. Without it tokens are sampled; `{}` takes the most likely ones."),
    ] = msgspec.field(default_factory=default_parameters)


class DetokenizeRequest(msgspec.Struct):
    """The body of `/detokenize`."""

    tokens: Annotated[list[U32], about("Token ids.")]


class DetokenizeResponse(msgspec.Struct):
    """The answer of `/detokenize`."""

    prompt: str


class CompatGenerateRequest(GenerateRequest):
    """The body of `/`."""

    stream: Annotated[bool, about("Answer with server-sent events, one for each token.")] = False


# Answers

Number: TypeAlias = float | None
"""A number, or null for one that JSON does not have."""


class TokenBody(msgspec.Struct):
    """A generated token."""

    id: int
    text: str
    logprob: Number
    special: bool


class PrefillToken(msgspec.Struct):
    """A token of the prompt. The log-probability of the first one is null."""

    id: int
    text: str
    logprob: Number


class BestOfSequence(msgspec.Struct, kw_only=True):
    """One of the sequences that `best_of` did not choose."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[TokenBody]
    top_tokens: list[list[TokenBody]] | UnsetType = UNSET


class Details(msgspec.Struct, kw_only=True):
    """Details of an answer."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[TokenBody]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[TokenBody]] | UnsetType = UNSET


class GenerateResponse(msgspec.Struct):
    """The answer of `/generate`."""

    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(msgspec.Struct):
    """Details of a streamed answer."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(msgspec.Struct, kw_only=True):
    """One event of a stream."""

    index: int
    token: TokenBody
    top_tokens: list[TokenBody] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None
