"""Names of the fields that TGI 3.3, OpenAI, vLLM 0.33 and llama.cpp document for each kind of request."""

from collections.abc import Mapping

from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from . import openapi_rows

_VLLM = """
add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params echo frequency_penalty ignore_eos
include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs max_tokens
min_p min_tokens mm_payload model n presence_penalty priority prompt_logprobs repetition_detection
repetition_penalty request_id response_format return_mm_kwargs return_token_ids return_token_offsets
return_tokens_as_token_ids return_weight_versions routed_experts_prompt_start seed session_id
skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options
structured_outputs temperature thinking_token_budget top_k top_p truncate_prompt_tokens truncation_side
use_beam_search user vllm_xargs watermarking
"""
_VLLM_BEFORE = (
    "guided_json guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern"
)
_VLLM_CHAT = """
add_generation_prompt chat_template chat_template_kwargs continue_final_message documents include_reasoning
max_completion_tokens media_io_kwargs messages mm_processor_kwargs parallel_tool_calls reasoning_effort
return_prompt_text tool_choice tools top_logprobs
"""
_VLLM_COMPLETIONS = "prompt prompt_embeds suffix"
_LLAMA = "grammar json_schema"


def _tgi(name: str) -> list[str]:
    return [word.rstrip("*") for word in openapi_rows.SCHEMAS[name].split()]


SOURCES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "native": {"TGI": frozenset(_tgi("GenerateParameters")), "vLLM": frozenset(_VLLM.split())},
    "chat": {
        "TGI": frozenset(_tgi("ChatRequest")),
        "OpenAI": frozenset(chat_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"},
        "vLLM": frozenset(" ".join((_VLLM, _VLLM_BEFORE, _VLLM_CHAT)).split()),
        "llama.cpp": frozenset(_LLAMA.split()),
    },
    "completions": {
        "TGI": frozenset(_tgi("CompletionRequest")),
        "OpenAI": frozenset(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"},
        "vLLM": frozenset(" ".join((_VLLM, _VLLM_BEFORE, _VLLM_COMPLETIONS)).split()),
        "llama.cpp": frozenset(_LLAMA.split()),
    },
}
"""Fields by kind of request and by who documents them."""
_NO_IMAGES = "it is about images, audio or video, which no model here takes"
_FOR_OPERATORS = "it is for the operator of OpenAI's service"
HARMLESS_ON: Mapping[str, Mapping[str, str]] = {
    "native": {
        "model": "`adapter_id` names a LoRA adapter, and there is one model",
        "return_tokens_as_token_ids": "tokens have their ids in any case",
        "stream": "the route says whether the answer is streamed",
        "stream_options": "numbers of tokens come in any case",
    },
    "chat": {},
    "completions": {},
}
"""Fields of a kind of request that cannot change the answer, beside those of `HARMLESS`."""
HARMLESS = {
    "guided_decoding_backend": "there is one backend",
    "length_penalty": "it is for beam search",
    "media_io_kwargs": _NO_IMAGES,
    "metadata": _FOR_OPERATORS,
    "mm_payload": _NO_IMAGES,
    "mm_processor_kwargs": _NO_IMAGES,
    "prediction": "it makes OpenAI's answer faster",
    "prompt_cache_key": "prefixes are cached in any case",
    "prompt_cache_options": "prefixes are cached in any case",
    "prompt_cache_retention": "prefixes are cached in any case",
    "request_id": "the header `x-request-id` names a request",
    "return_mm_kwargs": _NO_IMAGES,
    "return_token_offsets": "it is for vLLM's routes that render a prompt",
    "routed_experts_prompt_start": "experts are not reported",
    "safety_identifier": _FOR_OPERATORS,
    "service_tier": _FOR_OPERATORS,
    "session_id": "it is for routers before vLLM",
    "spaces_between_special_tokens": "it is for tokenizers that are not in tokenizer.json",
    "store": "answers are not stored",
    "stream_interval": "each token is an event",
    "user": _FOR_OPERATORS,
}
"""Fields that cannot change the answer, with the reason."""
