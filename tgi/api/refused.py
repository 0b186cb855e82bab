"""Fields of other servers that would change the answer and do nothing here: they are refused by name."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, cast

import attrs
import msgspec

from tgi.errors import ValidationError
from tgi.sampling import about

S = TypeVar("S", bound=msgspec.Struct)


@attrs.frozen
class Refused:
    """A field that is refused unless it is null or has a value that changes nothing."""

    advice: str
    """Continuation of the message, with what to do instead."""
    neutral: tuple[Any, ...] = (False,)


_GRAMMAR = "use `response_format` or `structured_outputs`"
_LORA = "use `model` to choose a LoRA adapter, or `adapter_id` on /generate"
_SAMPLING = "use `temperature`, `top_k`, `top_p`, `min_p` and `typical_p`"
EVERYWHERE = {
    "use_beam_search": Refused("use `n` or `best_of`, which draw instead of searching"),
    "watermarking": Refused("use `watermark`, which is another algorithm"),
    "logprob_token_ids": Refused("log-probabilities of chosen tokens are not offered"),
    "cache_salt": Refused("the prefix cache is shared by all requests; PREFIX_CACHING=0 switches it off"),
    "kv_transfer_params": Refused("the one engine gets no keys and values from others"),
    "ec_transfer_params": Refused("the one engine gets no embeddings from others"),
    "return_weight_versions": Refused("the weights have one version"),
    "vllm_xargs": Refused("the sampler has no extensions", ({},)),
    "repetition_detection": Refused("use `repetition_penalty`, `frequency_penalty` or `stop`"),
    # llama.cpp
    "dry_multiplier": Refused(_SAMPLING, (0,)),
    "dynatemp_range": Refused(_SAMPLING, (0,)),
    "mirostat": Refused(_SAMPLING, (0,)),
    "top_n_sigma": Refused(_SAMPLING, (-1, 0)),
    "xtc_probability": Refused(_SAMPLING, (0,)),
    "repeat_penalty": Refused("use `repetition_penalty`", (1,)),
    "lora": Refused(_LORA, ([],)),
    # SGLang
    "custom_logit_processor": Refused("the sampler has no extensions"),
    "lora_path": Refused(_LORA),
}
OPENAI = EVERYWHERE | {
    "adapter_id": Refused(_LORA),
    "guided_whitespace_pattern": Refused("the space in JSON is fixed"),
    "n_predict": Refused("use `max_tokens`", (-1,)),
    "n_probs": Refused("use `logprobs`", (0,)),
    "ebnf": Refused(_GRAMMAR),
    "regex": Refused(_GRAMMAR),
    "stop_regex": Refused("use `stop`"),
}
OPENAI |= {  # names of TGI's own routes, of other APIs here, and of llama.cpp
    "decoder_input_details": Refused("use `prompt_logprobs`"),
    "do_sample": Refused("use `temperature`, of which 0 takes the most likely tokens", (True,)),
    "max_new_tokens": Refused("use `max_tokens`"),
    "max_output_tokens": Refused("use `max_tokens`"),
    "num_predict": Refused("use `max_tokens`", (-1,)),
    "options": Refused("put what it has beside the other fields", ({},)),
    "parameters": Refused("put what it has beside the other fields", ({},)),
    "return_full_text": Refused("use `echo`"),
    "stop_sequences": Refused("use `stop`", ([],)),
    "top_n_tokens": Refused("use `logprobs`", (0,)),
    "truncate": Refused("use `truncate_prompt_tokens`"),
}
CHAT = OPENAI | {
    "audio": Refused("the answer is text"),
    "best_of": Refused("use `n`", (1,)),
    "chat_template": Refused("a request brings no template; start the server with --chat-template"),
    "modalities": Refused("the answer is text", (["text"], [])),
    "moderation": Refused("answers are not moderated"),
    "web_search_options": Refused("the server searches nothing"),
}
COMPLETIONS = OPENAI | {
    "prompt_embeds": Refused("a prompt is text or token ids"),
    "thinking_token_budget": Refused("use /v1/chat/completions", (-1,)),
}
MESSAGES = {
    **dict.fromkeys(("max_completion_tokens", "max_new_tokens"), Refused("use `max_tokens`")),
    "max_tokens_to_sample": Refused("use `max_tokens`"),
    "response_format": Refused("use `output_config`"),
    "reasoning_effort": Refused("use `output_config`"),
    "stop": Refused("use `stop_sequences`", ([],)),
    "compaction": Refused("shorten the conversation"),
    "container": Refused("nothing is run here"),
    "context_management": Refused("shorten the conversation", ({}, {"edits": []})),
    "mcp_servers": Refused("the server calls no tools", ([],)),
    "thread": Refused("send the whole conversation", ({"type": "create"},)),
}
RESPONSES = EVERYWHERE | {
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "max_new_tokens"), Refused("use `max_output_tokens`")
    ),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), Refused("use `repetition_penalty`", (0,))),
    **dict.fromkeys(("functions", "function_call"), Refused("use `tools` and `tool_choice`")),
    "logprobs": Refused("use /v1/chat/completions"),
    "messages": Refused("use `input`"),
    "n": Refused("use /v1/chat/completions", (1,)),
    "reasoning_effort": Refused("use `reasoning`"),
    "response_format": Refused("use `text`"),
    "background": Refused("wait for the answer, or stream it"),
    "context_management": Refused("shorten the conversation", ([],)),
    "conversation": Refused("use `previous_response_id`"),
    "enable_response_messages": Refused("use `return_token_ids` of /v1/chat/completions"),
    "moderation": Refused("answers are not moderated"),
    "previous_input_messages": Refused("put them into `input`", ([],)),
    "previous_response": Refused("use `previous_response_id`"),
    "prompt": Refused("no prompts are stored"),
    "top_logprobs": Refused("use /v1/chat/completions", (0,)),
}
_CUT = Refused("use `truncate`, which cuts a text at its end")
POOLING = {
    "add_special_tokens": Refused("the tokenizer decides; give tokens instead of a text", (True,)),
    "truncate_prompt_tokens": _CUT,
    "truncation_direction": Refused("a text is cut at its end", ("right", "Right")),
    "truncation_side": Refused("a text is cut at its end", ("right",)),
}
EMBEDDINGS = POOLING | {
    "input_type": Refused("/embed has `prompt_name`"),
    "normalize": Refused("/embed has it", (True,)),
}
RERANK = POOLING | {
    "max_chunks_per_doc": _CUT,
    "max_tokens_per_doc": _CUT,
    "rank_fields": Refused("give texts, or objects with a `text`", ([], ["text"])),
}
SCORES = POOLING | {
    "activation": Refused("/rerank has `raw_scores`", (True,)),
    "softmax": Refused("/rerank has `raw_scores`"),
    "use_activation": Refused("/rerank has `raw_scores`", (True,)),
}
OLLAMA = {
    "logprobs": Refused("use /v1/chat/completions"),
    "top_logprobs": Refused("use /v1/chat/completions", (0,)),
}
OLLAMA_GENERATE = OLLAMA | {
    "context": Refused("send the conversation to /api/chat", ([],)),
    "images": Refused("the model takes text only", ([],)),
    "raw": Refused("use /v1/completions"),
    "suffix": Refused("put it into the prompt", ("",)),
    "template": Refused("start the server with --chat-template", ("",)),
}
OLLAMA_OPTIONS = {
    "mirostat": Refused(_SAMPLING, (0,)),
    "penalize_newline": Refused("every token is penalised", (True,)),
    "repeat_last_n": Refused("the penalty looks at the whole text", (64, -1)),
    "tfs_z": Refused(_SAMPLING, (1,)),
}
_INSTEAD = {
    "add_special_tokens": Refused("use /v1/completions", (True,)),
    "echo": Refused("use `return_full_text`"),
    "include_stop_str_in_output": Refused("the text always has it; use /v1/completions", (True,)),
    "return_token_ids": Refused("use `details`"),
    "truncation_side": Refused("use /v1/completions", ("left",)),
    "allowed_token_ids": Refused("use /v1/completions"),
    "bad_words": Refused("use /v1/completions", ([],)),
    "logit_bias": Refused("use /v1/completions", ({}, [])),
    "logprobs": Refused("use `details`"),
    "max_tokens": Refused("use `max_new_tokens`"),
    "n": Refused("use `best_of`, or /v1/completions", (1,)),
    "prompt_logprobs": Refused("use `decoder_input_details`"),
    "skip_special_tokens": Refused("use `details` for the tokens, or /v1/completions", (True,)),
    "thinking_token_budget": Refused("use /v1/chat/completions", (-1,)),
    "truncate_prompt_tokens": Refused("use `truncate`"),
}
_GRAMMARS = "choice", "grammar", "json", "regex"
NATIVE = EVERYWHERE | _INSTEAD
NATIVE |= {
    name: Refused("use `grammar`")
    for name in (
        *(f"guided_{kind}" for kind in _GRAMMARS), "json_schema", "response_format", "structured_outputs",
    )
}  # fmt: skip


def refusing(fields: Mapping[str, Refused]) -> Callable[[type[S]], type[S]]:
    """Make a decorator of structs that refuse these fields, by ValidationError, while they are read."""

    def add(kind: type[S]) -> type[S]:
        inherited = getattr(kind, "__post_init__", None)

        def check(self: S) -> None:
            if inherited is not None:
                inherited(self)
            for name, field in fields.items():
                value = getattr(self, name)
                if value is not None and value not in field.neutral:
                    raise ValidationError(f"`{name}` is not supported: {field.advice}")

        described = [
            (name, Annotated[Any, about(f"Refused: {field.advice}.")], None) for name, field in fields.items()
        ]
        namespace = {"__post_init__": check, "__doc__": kind.__doc__}
        made = msgspec.defstruct(
            kind.__name__,
            described,
            bases=(kind,),
            module=kind.__module__,
            namespace=namespace,
            kw_only=True,
        )
        return cast(type[S], made)

    return add
