"""Bodies of chat and completions, and the generations that they ask for (tgi-behaviour 2.3, 2.4).

Where OpenAI's API allows more than TGI does, a request is read as OpenAI means it.
"""

from collections.abc import Sequence as Items
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tgi.api import refused
from tgi.api.call import Call
from tgi.api.loras import lora_of_model
from tgi.api.native_bodies import SEED, STOP, MaxTokens, ModelName, Priority, TokenId
from tgi.api.refused import refusing
from tgi.api.validate import Generation, Names, sampling_params
from tgi.errors import ValidationError
from tgi.limits import Limits
from tgi.sampling import U32, WARPERS, about

from .formats import FormatFields
from .messages import FunctionDefinition, FunctionName, NamedTool, Tool, ToolChoice, ValidMessage, ValidTool

MAX_CHAT_LOGPROBS = 20
"""OpenAI's maximum of `top_logprobs`; the server's own may be higher."""
MAX_COMPLETION_LOGPROBS = 5
"""OpenAI's maximum of `logprobs` in `/v1/completions`; the server's own may be higher."""
_CONTEXT = "This model's maximum context length is {} tokens. "
"""Beginning of OpenAI's message, by which clients know that they must shorten a conversation."""
_MAX_BIAS = 100.0
_MAX_ID_DIGITS = 10

# Bodies


class StreamOptions(msgspec.Struct):
    """Additions to a stream."""

    include_usage: Annotated[bool | None, about("Report numbers of tokens in an event at the end.")] = None
    continuous_usage_stats: Annotated[bool | None, about("Report numbers of tokens in every event.")] = None


_BIAS = "Numbers from -100 to 100 added to logits, by token id. A list is ignored."
_TOP = "Number of most likely tokens to report for each token."


class OpenAIRequest(FormatFields, kw_only=True):
    """Fields that the bodies of chat and completions share."""

    model: ModelName = None
    max_tokens: MaxTokens = None
    max_completion_tokens: Annotated[U32 | None, about("Newer name of `max_tokens`.")] = None
    stop: Annotated[str | list[str] | None, STOP] = None
    seed: Annotated[int | None, about(SEED)] = None
    stream: Annotated[bool | None, about("Answer with server-sent events.")] = False
    stream_options: Annotated[StreamOptions | None, about("Additions to a stream.")] = None
    n: Annotated[U32 | None, about("Number of texts.", limit="max_concurrent_requests", minimum=1)] = None
    logit_bias: Annotated[dict[str, float] | list[float] | None, about(_BIAS)] = None
    ignore_eos: Annotated[bool | None, about("Go on after the model's end tokens.")] = None
    stop_token_ids: Annotated[list[TokenId] | None, about("Tokens that end the text.")] = None
    priority: Priority = None
    allowed_token_ids: Annotated[list[TokenId] | None, about("Tokens that alone may be generated.")] = None
    bad_words: Annotated[list[str] | None, about("Texts whose last token may not follow the others.")] = None
    include_stop_str_in_output: Annotated[bool | None, about("Leave what ends the text in it.")] = None
    skip_special_tokens: Annotated[bool | None, about("Leave special tokens out; null: yes.")] = None
    add_special_tokens: Annotated[
        bool | None,
        about("Put the tokenizer's own tokens before the prompt; null: not before a conversation."),
    ] = None
    truncate_prompt_tokens: Annotated[
        int | None, about("Tokens of the prompt that count; -1: as many as fit with the answer.", minimum=-1)
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None, about("Side from which a prompt is truncated; null: left.")
    ] = None
    prompt_logprobs: Annotated[
        U32 | None,
        about(
            "Number of most likely tokens to report for each token of the prompt.",
            limit="max_top_n_tokens",
            at_least=MAX_CHAT_LOGPROBS,
        ),
    ] = None
    return_token_ids: Annotated[bool | None, about("Report ids of the tokens of prompt and text.")] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, about("Name tokens in `logprobs` by id: `token_id:5`.")
    ] = None

    def __post_init__(self) -> None:
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("`max_tokens` and `max_completion_tokens` differ")
            self.max_tokens = self.max_completion_tokens
        if "" in self.stops:
            raise ValidationError("`stop` cannot have an empty text")
        if self.prompt_logprobs is not None and self.stream:
            raise ValidationError("`prompt_logprobs` is not supported when streaming tokens")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError("Expected `seed` of 64 bits")

    @property
    def stops(self) -> list[str]:
        """Strings that end the text."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


@refusing(refused.CHAT)
class ChatRequest(OpenAIRequest, kw_only=True):
    """The body of `/v1/chat/completions` and `/chat_tokenize`."""

    messages: Annotated[list[ValidMessage], about("The conversation so far.", minItems=1)]
    max_completion_tokens: Annotated[U32 | None, about("Newer name of `max_tokens`.", minimum=1)] = None
    logprobs: Annotated[bool | None, about("Report the log-probability of each token.")] = None
    top_logprobs: Annotated[U32 | None, about(_TOP, limit="max_top_n_tokens", at_least=MAX_CHAT_LOGPROBS)] = (
        None
    )
    tools: Annotated[list[ValidTool] | None, about("Functions that the model may call.")] = None
    tool_choice: ToolChoice = None
    tool_prompt: Annotated[str | None, about("Text before tools that the chat template ignores.")] = None
    parallel_tool_calls: Annotated[bool | None, about("Whether several calls may be made; null: yes.")] = None
    functions: Annotated[
        list[FunctionDefinition] | None, about("Older form of `tools`; the answer has a `function_call`.")
    ] = None
    function_call: Annotated[
        Literal["none", "auto"] | FunctionName | None, about("Older form of `tool_choice`.")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, about("End the prompt where an answer begins; null: yes, unless a message is continued.")
    ] = None
    continue_final_message: Annotated[
        bool | None, about("Continue the last message; null: yes if it is the assistant's.")
    ] = None
    echo: Annotated[bool | None, about("Put the last message before the text if it is the assistant's.")] = (
        None
    )
    return_prompt_text: Annotated[bool | None, about("Report the prompt that the messages become.")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, about("Variables for the chat template.")] = None
    documents: Annotated[list[dict[str, Any]] | None, about("Documents for the chat template.")] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        about("Effort; `none` means `enable_thinking: false`. Other words are `chat_template_kwargs`."),
    ] = None
    verbosity: Annotated[Literal["low", "medium", "high"] | None, about("For the chat template.")] = None
    enable_thinking: Annotated[bool | None, about("Whether the model thinks before it answers.")] = None
    include_reasoning: Annotated[bool | None, about("Whether thoughts are answered; null: yes.")] = None
    max_thinking_tokens: Annotated[
        U32 | None,
        about(
            "Maximum number of tokens of thoughts. Default: no limit, or half of all tokens if a tool call "
            "is required or an answer is constrained."
        ),
    ] = None

    thinking_token_budget: Annotated[
        int | None, about("Another name of `max_thinking_tokens`; -1: no limit.", minimum=-1)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_logprobs and not self.logprobs:
            raise ValidationError("`top_logprobs` needs `logprobs`")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValidationError("`continue_final_message` and `add_generation_prompt` exclude each other")
        if self.thinking_token_budget is not None:
            if self.thinking_token_budget < -1:
                raise ValidationError("`thinking_token_budget` must be >= -1")
            if self.max_thinking_tokens is None and self.thinking_token_budget >= 0:
                self.max_thinking_tokens = self.thinking_token_budget
        self._read_functions()

    def _read_functions(self) -> None:
        """Turn the older form of tools into the newer."""
        if self.functions is None:
            if self.function_call not in (None, "none"):
                raise ValidationError("`function_call` needs `functions`")
            return
        if self.tools is not None or self.tool_choice is not None:
            raise ValidationError("`functions` and `tools` cannot be combined")
        self.tools = [Tool(function) for function in self.functions]
        self.parallel_tool_calls = False
        chosen = self.function_call
        self.tool_choice = NamedTool(chosen) if isinstance(chosen, FunctionName) else chosen

    @property
    def chosen_tools(self) -> tuple[str, list[str] | None]:
        """Mode, which is `named` if one function must be called, and the functions if not all are meant."""
        choice = "auto" if self.tool_choice is None else self.tool_choice
        if isinstance(choice, str):
            return (choice, None) if choice in ("auto", "none", "required") else ("named", [choice])
        if choice.allowed_tools is None:
            assert choice.function is not None
            return "named", [choice.function.name]
        allowed = choice.allowed_tools
        return allowed.mode, [tool.function.name for tool in allowed.tools if tool.function is not None]


Prompt: TypeAlias = str | Annotated[list[str | U32 | list[U32]], Meta(extra_json_schema={"minItems": 1})]


@refusing(refused.COMPLETIONS)
class CompletionRequest(OpenAIRequest, kw_only=True):
    """The body of `/v1/completions`."""

    max_tokens: Annotated[U32 | None, about("Maximum number of tokens; 0 is for the prompt alone.")] = None
    prompt: Annotated[Prompt, about("One prompt or several, as text or as token ids.")]
    suffix: Annotated[str | None, about("Not supported.", maxLength=0)] = None
    echo: Annotated[bool | None, about("Put the prompt before the text, also in `logprobs`.")] = None
    logprobs: Annotated[
        U32 | bool | None, about(_TOP, limit="max_top_n_tokens", at_least=MAX_COMPLETION_LOGPROBS)
    ] = None
    best_of: Annotated[
        U32 | None, about("Texts of which the best `n` count.", limit="max_concurrent_requests", minimum=1)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.logprobs, bool):
            self.logprobs = 1 if self.logprobs else None
        if isinstance(self.prompt, list):
            if not self.prompt:
                raise ValueError("Empty array detected. Do not use an empty array for the prompt.")
            if len({type(item) for item in self.prompt}) > 1:
                raise ValueError(
                    "Expected texts, token ids or lists of token ids in `prompt`, not several of these"
                )

    @property
    def is_prompt_only(self) -> bool:
        """Whether nothing but the prompt is wanted; one token is generated all the same, but not shown."""
        return self.max_tokens == 0

    @property
    def prompts(self) -> list[str | list[int]]:
        """Prompts, each a text or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


# Generations


def make_generation(
    call: Call[Any],
    body: OpenAIRequest,
    prompt: str | Items[int],
    *,
    max_tokens: int | None,
    top: int | None,
    names: tuple[str, str],
    **others: Any,
) -> Generation:
    """Return the generation that a request asks for. `top`: most likely tokens to report for each token.

    `names` are those of the prompt's field and of `top`'s. Raises ValidationError.
    """
    if body.stream_options is not None and not body.stream:
        raise ValidationError("`stream_options` needs `stream`")
    greedy = body.temperature == 0 or body.top_p == 0
    sampling = sampling_params(
        body,
        "openai",
        sample=not greedy,
        logit_bias=_bias(body.logit_bias, call.engine.model.vocab_size),
        top_n_tokens=top or 0,
    )
    if greedy:
        sampling = msgspec.structs.replace(sampling, **{warper.name: warper.neutral for warper in WARPERS})
    return Generation(
        prompt=prompt,
        sampling=sampling,
        seed=body.seed,
        max_new_tokens=max_tokens,
        stop=body.stops,
        length_first=False,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=body.stop_token_ids or (),
        allowed_token_ids=body.allowed_token_ids,
        bad_words=body.bad_words or (),
        priority=body.priority,
        lora=lora_of_model(call.engine, body.model),
        truncate=_truncation(body, call.engine.limits, max_tokens or 1),
        truncate_end=body.truncation_side == "right",
        names=Names(
            names[0],
            "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
            names[1],
            _CONTEXT,
        ),
        **others,
    )


def _truncation(body: OpenAIRequest, limits: Limits, max_tokens: int) -> int | None:
    """Return the number of tokens of the prompt that count; None: all. Raises ValidationError."""
    wanted = body.truncate_prompt_tokens
    if wanted is not None and (wanted == 0 or not -1 <= wanted <= limits.max_input_tokens):
        raise ValidationError(
            f"`truncate_prompt_tokens` must be -1, or > 0 and <= {limits.max_input_tokens}. Given: {wanted}"
        )
    if wanted != -1:
        return wanted
    room = limits.max_total_tokens - max_tokens
    return min(room, limits.max_input_tokens) if room > 0 else limits.max_input_tokens


def prompt_top(body: OpenAIRequest, limits: Limits, echoed: int | None = None) -> int | None:
    """Return the number of most likely tokens to report for each token of the prompt; None: nothing.

    `echoed` of them are wanted beside an echo of the prompt. Raises ValidationError.
    """
    wanted, maximum = body.prompt_logprobs, max(limits.max_top_n_tokens, MAX_CHAT_LOGPROBS)
    if wanted is not None and wanted > maximum:
        raise ValidationError(f"`prompt_logprobs` must be >= 0 and <= {maximum}. Given: {wanted}")
    return max((count for count in (wanted, echoed) if count is not None), default=None)


def check_count(name: str, value: int | None, limits: Limits) -> int:
    """Return the number of texts that `n` or `best_of` asks for, each of which takes a permit.

    Raises ValidationError.
    """
    count, maximum = 1 if value is None else value, limits.max_concurrent_requests
    if not 0 < count <= maximum:
        raise ValidationError(f"`{name}` must be > 0 and <= {maximum}. Given: {count}")
    return count


def _bias(bias: dict[str, float] | list[float] | None, size: int) -> tuple[tuple[int, float], ...]:
    pairs = {}
    for key, value in bias.items() if isinstance(bias, dict) else ():
        is_number = key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS
        token = int(key) if is_number else size
        if token >= size:
            raise ValidationError(f"`logit_bias`: {key[:40]!r} is no id of the model's {size} tokens")
        if not -_MAX_BIAS <= value <= _MAX_BIAS:
            raise ValidationError(f"`logit_bias` must be >= -100 and <= 100. Given: {value:g} for {key}")
        pairs[token] = value
    return tuple(pairs.items())
