"""What the fields of requests mean, and the ranges that validate.py and openai_parameters.py hold them to."""

from typing import Any

import attrs

from tgi.limits import Limits

from .openai_parameters import MOST_CHAT_LOGPROBS, MOST_COMPLETION_LOGPROBS

_POSITIVE = {"minimum": 0, "exclusiveMinimum": True}
_INSIDE_UNIT = {**_POSITIVE, "maximum": 1, "exclusiveMaximum": True}
_PENALTY = {"minimum": -2, "maximum": 2}

Doc = tuple[str, dict[str, Any]]

_DOCS: dict[str, Doc] = {
    # TGI's parameters
    "inputs": ("The prompt.", {}),
    "parameters": ("How to generate. Left out altogether, tokens are sampled; `{}` takes the likeliest.", {}),
    "best_of": ("Generate so many texts, and answer the one whose tokens are likeliest on average.", {}),
    "temperature": ("Divides the logits: above 1 the text gets more random, below 1 less.", _POSITIVE),
    "repetition_penalty": ("Divides the logits of tokens in prompt and text; 1 changes nothing.", _POSITIVE),
    "frequency_penalty": ("Lowers the logits of tokens by how often they came.", _PENALTY),
    "top_k": ("Choose among so many likeliest tokens only.", {"minimum": 1}),
    "top_p": ("Choose among the likeliest tokens that together have this probability.", _INSIDE_UNIT),
    "typical_p": (
        "Choose among the tokens of most typical information content that together have this probability.",
        _INSIDE_UNIT,
    ),
    "do_sample": ("Draw the tokens, where no other parameter implies it.", {}),
    "max_new_tokens": (
        "Generate at most so many tokens; null: as many as there is room for.",
        {"minimum": 1},
    ),
    "return_full_text": ("Put the prompt before the text.", {}),
    "stop": ("End where one of these appears.", {}),
    "truncate": ("Use so many last tokens of the prompt.", {"minimum": 1}),
    "watermark": ("Prefer a pseudo-random half of the tokens, so that the text can be recognised.", {}),
    "details": ("Tell about each token.", {}),
    "decoder_input_details": ("Tell about each token of the prompt; not when streaming.", {}),
    "seed": ("For the same text again; null: another one each time. Not with `best_of`.", {}),
    "top_n_tokens": ("Tell so many likeliest tokens in the place of each.", {}),
    "grammar": ("What the text must look like.", {}),
    "adapter_id": ("A LoRA adapter.", {}),
    "stream": ("Answer with server-sent events, one for each token.", {}),
    # OpenAI's
    "messages": ("The conversation so far.", {}),
    "prompt": ("One prompt or several, as text or as token ids.", {}),
    "model": ("Any name is accepted, for there is one model.", {}),
    "max_tokens": ("Generate at most so many tokens; null: as many as there is room for.", {"minimum": 1}),
    "max_completion_tokens": (
        "OpenAI's newer name of `max_tokens`; only one of both may be given.",
        {"minimum": 1},
    ),
    "presence_penalty": ("Lowers the logits of tokens that came.", _PENALTY),
    "min_p": (
        "Leave out tokens less likely than this part of the likeliest one.",
        {"minimum": 0, "maximum": 1},
    ),
    "stream_options": ("What else to stream.", {}),
    "include_usage": ("Tell the numbers of tokens in an event of their own at the end.", {}),
    "continuous_usage_stats": ("Tell the numbers of tokens in every event.", {}),
    "logprobs": ("Tell the log-probability of each token.", {}),
    "top_logprobs": ("Tell so many likeliest tokens in the place of each.", {}),
    "tools": ("Functions that the model may call.", {}),
    "tool_choice": ("Whether a tool must be called, and which.", {}),
    "tool_prompt": ("Comes before the tools where the chat template does not know tools.", {}),
    "parallel_tool_calls": ("Whether there may be several calls; null: yes.", {}),
    "response_format": ("What the text must look like.", {}),
    "logit_bias": ("By token id: what is added to its logit, from -100 to 100. A list is ignored.", {}),
    "n": ("Generate so many texts.", {"minimum": 1}),
    "min_tokens": ("Do not end before there are so many tokens.", {}),
    "ignore_eos": ("Do not end where the model would.", {}),
    "stop_token_ids": ("End at one of these tokens.", {}),
    "chat_template_kwargs": ("Further variables for the chat template.", {}),
    "documents": ("Documents for the chat template, as its model expects them.", {}),
    "reasoning_effort": ("Variable of the chat template; `none` also means `enable_thinking: false`.", {}),
    "enable_thinking": ("Whether the model thinks before it answers, if the chat template knows that.", {}),
    "include_reasoning": ("Whether the answer has the thoughts of the model; default: true.", {}),
    "max_thinking_tokens": (
        "Maximum number of tokens of thoughts. Default: no limit, or half of all tokens if a tool call is "
        "required or an answer is constrained.",
        {},
    ),
    "echo": ("Put the prompt before the text, in `logprobs` too.", {}),
    "suffix": ("Not supported: anything but null is refused.", {"maxLength": 0}),
    # others'
    "instances": ("Prompts and conversations.", {"minItems": 1}),
    "tokens": ("Token ids.", {}),
    "outputs": ("As many as there are inputs.", {}),
    "data": ("The bytes of the text in UTF-8.", {}),
    "arguments": ("A JSON schema; OpenAI calls it `parameters`. Only one of both may be given.", {}),
    "strict": ("Without effect: the schema is always obeyed.", {}),
    "url": ("Where it is: http(s) or data.", {}),
}

_SPECIAL: dict[str, Doc] = {
    "ChatRequest.temperature": (
        "Divides the logits: above 1 the text gets more random, below 1 less; 0 takes the likeliest token.",
        {"minimum": 0},
    ),
    "ChatRequest.top_p": (
        "Choose among the likeliest tokens that together have this probability; 1: all.",
        {**_POSITIVE, "maximum": 1},
    ),
    "ChatRequest.top_k": ("Choose among so many likeliest tokens only; 0 or -1: all.", {"minimum": -1}),
    "CompletionRequest.max_tokens": (
        "Generate at most so many tokens; null: as many as there is room for. 0 is for `echo` alone.",
        {"minimum": 0},
    ),
    "CompletionRequest.best_of": ("Generate so many texts, and answer the `n` likeliest.", {"minimum": 1}),
    "CompletionRequest.logprobs": ("Tell so many likeliest tokens in the place of each.", {}),
    "FunctionDefinition.parameters": ("A JSON schema; without one the function takes nothing.", {}),
    "FunctionCall.arguments": ("Usually the text of a JSON object; OpenAI's name.", {}),
    "FunctionCall.parameters": ("Another name of `arguments`. Only one of both may be given.", {}),
    "Input.shape": ("Not looked at.", {}),
    "Input.datatype": ("Not looked at.", {}),
    "InferenceRequest.inputs": ("Prompts.", {}),
}
for _name in ("temperature", "top_p", "top_k"):
    _SPECIAL[f"CompletionRequest.{_name}"] = _SPECIAL[f"ChatRequest.{_name}"]


@attrs.frozen
class Docs:
    """What to say of a field, on a server with these limits."""

    limits: Limits
    vocab_size: int | None = None
    """Token ids end here; None: the model is not known yet."""

    def of(self, kind: str, name: str) -> dict[str, Any]:
        """OpenAPI keywords for the field of a class; none for what speaks for itself."""
        found = _SPECIAL.get(f"{kind}.{name}") or _DOCS.get(name)
        if found is None:
            return {}
        description, ranges = found
        return {"description": description, **ranges, **self._limited(kind, name)}

    def _limited(self, kind: str, name: str) -> dict[str, Any]:
        limits = self.limits
        if self.vocab_size is not None and name in ("stop_token_ids", "tokens"):
            return {"items": {"type": "integer", "minimum": 0, "maximum": self.vocab_size - 1}}
        top = limits.max_top_n_tokens
        by_name = {
            "best_of": {"maximum": limits.max_best_of},
            "n": {"maximum": limits.max_concurrent_requests},
            "stop": {"maxItems": limits.max_stop_sequences},
            "truncate": {"maximum": limits.max_input_tokens},
            "top_n_tokens": {"maximum": top},
            "top_logprobs": {"maximum": max(top, MOST_CHAT_LOGPROBS)},
            "CompletionRequest.best_of": {"maximum": limits.max_concurrent_requests},
            "CompletionRequest.logprobs": {"maximum": max(top, MOST_COMPLETION_LOGPROBS)},
        }
        return by_name.get(f"{kind}.{name}", by_name.get(name, {}))
