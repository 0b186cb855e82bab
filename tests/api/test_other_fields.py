"""Every field that other APIs document: it works, is refused by name, or cannot change the answer.

As test_fields.py does for TGI's and OpenAI's older ones. docs/fields.md is made of both:
`python -m tests.api.test_other_fields` writes these tables.
"""

from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import msgspec
import pytest
from openai.types import embedding_create_params
from openai.types.responses import response_create_params

from tests.documented import ROOT
from tgi.api import anthropic, embeddings, ollama, refused, responses
from tgi.protocol.pooling import Pooling

from .documented_fields import HARMLESS
from .serving import LIMITS, Server, saying, serving
from .test_tools import HERMES, USER

PAGE = ROOT / "docs" / "fields.md"
ROOM = attrs.evolve(LIMITS, max_input_tokens=900, max_total_tokens=1000, max_batch_prefill_tokens=900)
LOADING = "it is about how Ollama loads a model"
PICTURES = "it is about pictures, which no model here makes"
OPERATOR = "it is for the operator of the service"
VLLM = """
    add_special_tokens truncate_prompt_tokens priority request_id user mm_processor_kwargs cache_salt model
"""


@attrs.frozen
class Kind:
    """A kind of request."""

    path: str
    body: type
    refused: Mapping[str, refused.Refused]
    base: dict[str, Any]
    """A request that is answered."""
    sources: Mapping[str, str]
    """Fields by who documents them."""
    harmless: Mapping[str, str] = attrs.field(factory=dict)
    pools: bool = False
    ranks: bool = False
    inside: str = ""
    """Name of the object of the request that has the fields; "": they are the request's own."""

    def request(self, **fields: Any) -> dict[str, Any]:
        return self.base | ({self.inside: fields} if self.inside else fields)

    def declared(self) -> set[str]:
        return {field.encode_name for field in msgspec.structs.fields(self.body)}

    def works(self) -> set[str]:
        return self.declared() - {*self.refused, *self.harmless}

    def documented(self) -> set[str]:
        return {name for names in self.sources.values() for name in names.split()}


TEXTS = {"query": "Hello", "texts": ["world"]}
KINDS = {
    "responses": Kind(
        "/v1/responses", responses.ResponsesRequest, refused.RESPONSES,
        {"input": "Hi", "store": False, "temperature": 0},
        {
            "OpenAI": " ".join([*response_create_params.ResponseCreateParamsBase.__annotations__, "stream"]),
            "vLLM": """
                background include input instructions max_output_tokens max_tool_calls metadata model
                logit_bias parallel_tool_calls previous_response_id prompt reasoning service_tier store
                stream temperature text tool_choice tools top_logprobs top_p top_k truncation user
                skip_special_tokens prompt_cache_key include_stop_str_in_output request_id media_io_kwargs
                mm_processor_kwargs priority cache_salt enable_response_messages previous_input_messages
                structured_outputs repetition_penalty seed stop ignore_eos vllm_xargs
            """,
        },
        {
            **{name: HARMLESS[name] for name in (
                "media_io_kwargs", "mm_processor_kwargs", "prompt_cache_key", "prompt_cache_options",
                "prompt_cache_retention", "request_id", "safety_identifier", "service_tier",
            )},
            "access_programs": OPERATOR,
            "background_options": "`background` is refused",
            "image": PICTURES,
            "include": "everything comes without it; log-probabilities are refused",
            "max_tool_calls": "it counts tools of OpenAI's own, which are refused",
        },
    ),
    "messages": Kind(
        "/v1/messages", anthropic.MessagesRequest, refused.MESSAGES,
        {"max_tokens": 9, "messages": [USER], "temperature": 0},
        {
            "Anthropic": """
                billing_policy cache_control compaction container context_management diagnostics
                fallback_credit_token fallbacks inference_geo max_tokens mcp_servers messages metadata model
                output_config output_format service_tier speed stop_sequences stream system temperature
                thinking thread tool_choice tools top_k top_p
            """,
        },
        {
            **dict.fromkeys("billing_policy fallback_credit_token inference_geo metadata".split(), OPERATOR),
            "cache_control": "prefixes are cached in any case",
            "diagnostics": "it is about the cache of Anthropic's service",
            "fallbacks": "there is one model",
            "service_tier": OPERATOR,
            "speed": "there is one speed",
        },
    ),
    "ollama-chat": Kind(
        "/api/chat", ollama.OllamaChatRequest, refused.OLLAMA, {"messages": [USER], "stream": False},
        {"Ollama": "format keep_alive logprobs messages model options stream think tools top_logprobs"},
        {"keep_alive": "the model stays loaded"},
    ),
    "ollama-generate": Kind(
        "/api/generate", ollama.OllamaGenerateRequest, refused.OLLAMA_GENERATE,
        {"prompt": "Hi", "stream": False},
        {
            "Ollama": """
                context format height images keep_alive logprobs model options prompt raw steps stream
                suffix system template think top_logprobs width
            """,
        },
        {"keep_alive": "the model stays loaded", **dict.fromkeys(("height", "steps", "width"), PICTURES)},
    ),
    "ollama-options": Kind(
        "/api/chat", ollama.OllamaOptions, refused.OLLAMA_OPTIONS, {"messages": [USER], "stream": False},
        {
            "Ollama": """
                embedding_only f16_kv frequency_penalty logits_all low_vram main_gpu min_p mirostat
                mirostat_eta mirostat_tau num_batch num_ctx num_gpu num_keep num_predict num_thread numa
                penalize_newline presence_penalty repeat_last_n repeat_penalty seed stop temperature tfs_z
                top_k top_p typical_p use_mlock use_mmap vocab_only
            """,
        },
        {
            **dict.fromkeys(
                """
                embedding_only f16_kv logits_all low_vram main_gpu num_batch num_ctx num_gpu num_keep
                num_thread numa use_mlock use_mmap vocab_only
                """.split(),
                LOADING,
            ),
            **dict.fromkeys(("mirostat_eta", "mirostat_tau"), "`mirostat` is refused"),
        },
        inside="options",
    ),
    "embeddings": Kind(
        "/v1/embeddings", embeddings.EmbeddingRequest, refused.EMBEDDINGS, {"input": "Hello"},
        {
            "OpenAI": " ".join(embedding_create_params.EmbeddingCreateParams.__annotations__),
            "vLLM": f"input encoding_format dimensions normalize truncation_side {VLLM}",
        },
        {
            **{name: HARMLESS[name] for name in ("mm_processor_kwargs", "request_id")},
            "cache_salt": "nothing is cached",
            "model": "there is one model",
            "priority": "texts are computed in the order of their arrival",
            "user": OPERATOR,
        },
        pools=True,
    ),
    "embed": Kind(
        "/embed", embeddings.EmbedRequest, refused.POOLING, {"inputs": "Hello"},
        {"TEI": "inputs normalize prompt_name truncate truncation_direction dimensions"},
        pools=True,
    ),
    "rerank": Kind(
        "/v1/rerank", embeddings.RerankRequest, refused.RERANK, {"query": "Hello", "documents": ["world"]},
        {
            "Cohere": """
                query documents model top_n max_tokens_per_doc return_documents max_chunks_per_doc rank_fields
            """,
            "Jina": "query documents model top_n return_documents",
            "vLLM": f"query documents top_n {VLLM}",
        },
        {
            **{name: HARMLESS[name] for name in ("mm_processor_kwargs", "request_id")},
            "cache_salt": "nothing is cached",
            "model": "there is one model",
            "priority": "texts are computed in the order of their arrival",
            "user": OPERATOR,
        },
        pools=True, ranks=True,
    ),
    "rerank-texts": Kind(
        "/rerank", embeddings.TextsRequest, refused.POOLING, TEXTS,
        {"TEI": "query texts raw_scores return_text truncate truncation_direction"},
        pools=True, ranks=True,
    ),
    "score": Kind(
        "/v1/score", embeddings.ScoreRequest, refused.SCORES, {"text_1": "Hello", "text_2": "world"},
        {"vLLM": f"text_1 text_2 activation softmax use_activation truncation_side {VLLM}"},
        {
            **{name: HARMLESS[name] for name in ("mm_processor_kwargs", "request_id")},
            "cache_salt": "nothing is cached",
            "model": "there is one model",
            "priority": "texts are computed in the order of their arrival",
            "user": OPERATOR,
        },
        pools=True, ranks=True,
    ),
}  # fmt: skip
CHANGING = {
    "id",
    "created",
    "created_at",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
}
"""Parts of answers that differ from one to the next."""


@asynccontextmanager
async def trying(kind: Kind) -> Any:
    pooling = Pooling(folder="", ranks=kind.ranks) if kind.pools else None
    async with serving(saying("Hello, world"), limits=ROOM, template=HERMES, pooling=pooling) as server:
        yield server


def without_changes(answer: Any) -> Any:
    if isinstance(answer, list):
        return [without_changes(one) for one in answer]
    if isinstance(answer, dict):
        return {name: without_changes(one) for name, one in answer.items() if name not in CHANGING}
    return answer


async def ask(server: Server, kind: Kind, status: int = 200, **fields: Any) -> Any:
    answer = await server.ask("POST", kind.path, kind.request(**fields))
    assert answer.status == status, (fields, answer.body)
    return without_changes(answer.json)


@pytest.mark.parametrize("name", KINDS)
def test_every_documented_field_is_known_once(name: str) -> None:
    kind = KINDS[name]
    for field in kind.documented():
        assert sum(field in known for known in (kind.works(), kind.refused, kind.harmless)) == 1, field


@pytest.mark.parametrize("name", KINDS)
async def test_fields_are_refused_by_name_or_change_nothing(name: str) -> None:
    kind = KINDS[name]
    async with trying(kind) as server:
        await ask(server, kind)  # from now on the prompt is cached
        plain = await ask(server, kind)
        for field, refusal in kind.refused.items():
            error = await ask(
                server, kind, 400 if kind.path.startswith("/v1/") else 422, **{field: {"a": "b"}}
            )
            assert f"`{field}` is not supported: {refusal.advice}" in str(error)
            for value in (None, *refusal.neutral):
                assert await ask(server, kind, **{field: value}) == plain, (field, value)
        for field in kind.harmless.keys() - kind.declared():  # those have types
            for value in (None, 5, {"a": "b"}):
                assert await ask(server, kind, **{field: value}) == plain, (field, value)


async def test_what_is_not_included_is_refused() -> None:
    async with trying(KINDS["responses"]) as server:
        await ask(server, KINDS["responses"], include=["reasoning.encrypted_content"])
        await ask(server, KINDS["responses"], 400, include=["message.output_text.logprobs"])


def rows(kind: Kind) -> Iterator[str]:
    yield "| field | documented by | here |"
    yield "| --- | --- | --- |"
    for name in sorted({*kind.documented(), *kind.works(), *kind.refused}):
        by = ", ".join(source for source, names in kind.sources.items() if name in names.split())
        if name in kind.refused:
            here = f"refused: {kind.refused[name].advice}"
        else:
            here = f"cannot change the answer: {kind.harmless[name]}" if name in kind.harmless else "works"
        yield f"| `{name}` | {by or 'other servers'} | {here} |"


def page() -> str:
    text = PAGE.read_text("utf-8")
    for name, kind in KINDS.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, mark, rest = text.partition(begin)
        assert mark
        text = before + begin + "".join(f"{row}\n" for row in rows(kind)) + end + rest.partition(end)[2]
    return text


def test_the_page_is_made_from_the_fields() -> None:
    assert PAGE.read_text("utf-8") == page(), "python -m tests.api.test_other_fields"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
