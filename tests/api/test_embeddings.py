"""Routes of embeddings and scores, with vectors that tests know."""

import base64
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import numpy as np
import pytest

from tests.api.serving import LIMITS, FakePooler, Server, make_tokenizer, serving
from tgi.protocol.pooling import Pooling

TEXT, OTHER = "Hello", "world"
POOLED = ("/v1/embeddings", "/v1/rerank", "/v1/score", "/rerank", "/embed")


@attrs.define
class Asking:
    server: Server
    pooler: FakePooler

    async def ask(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = await self.server.ask("POST", path, body)
        assert answer.status == status, answer.body
        return answer.json


@asynccontextmanager
async def embedding(ranks: bool = False, **pooling: Any) -> AsyncIterator[Asking]:
    async with serving(pooling=Pooling(folder="", ranks=ranks, **pooling)) as server:
        assert server.service.embedder is not None
        pooler: Any = server.service.embedder.pooler
        yield Asking(server, pooler)


def tokens(text: str) -> list[int]:
    return make_tokenizer().encode(text)


def vector(text: str) -> Any:
    found = np.array([len(tokens(text)), tokens(text)[0], 0, 1], np.float64)
    return found / np.linalg.norm(found)


async def test_embeddings_are_openais() -> None:
    async with embedding() as asking:
        one = await asking.ask("/v1/embeddings", input=TEXT, model="any")
        assert one.keys() == {"object", "data", "model", "usage"}
        assert (one["object"], one["model"]) == ("list", "some/model")
        assert one["usage"] == {"prompt_tokens": len(tokens(TEXT)), "total_tokens": len(tokens(TEXT))}
        assert [(row["object"], row["index"]) for row in one["data"]] == [("embedding", 0)]
        assert one["data"][0]["embedding"] == pytest.approx(vector(TEXT))

        many = await asking.ask("/v1/embeddings", input=[TEXT, tokens(OTHER)], encoding_format="base64")
        found = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in many["data"]]
        assert found[0].tolist() == pytest.approx(vector(TEXT))
        assert found[1].tolist() == pytest.approx(vector(OTHER))
        assert (await asking.ask("/v1/embeddings", input=tokens(OTHER)))["data"][0][
            "embedding"
        ] == pytest.approx(vector(OTHER))


async def test_vectors_are_cut_and_then_scaled() -> None:
    async with embedding() as asking:
        (row,) = (await asking.ask("/v1/embeddings", input=TEXT, dimensions=1))["data"]
        assert row["embedding"] == [1.0]
        assert (await asking.ask("/embed", inputs=[TEXT], dimensions=1, normalize=False)) == [
            [len(tokens(TEXT))]
        ]
        for dimensions in (0, -1, 5):
            error = await asking.ask("/v1/embeddings", 400, input=TEXT, dimensions=dimensions)
            assert "`dimensions` is" in error["error"]["message"]
    async with embedding(dimensions=(2, 4)) as asking:
        await asking.ask("/v1/embeddings", input=TEXT, dimensions=2)
        error = await asking.ask("/v1/embeddings", 400, input=TEXT, dimensions=3)
        assert "this model has 2 or 4" in error["error"]["message"]


async def test_embed_is_teis() -> None:
    async with embedding(prompts={"query": "Q: "}) as asking:
        assert await asking.ask("/embed", inputs=TEXT) == [pytest.approx(vector(TEXT))]
        plain = await asking.ask("/embed", inputs=[TEXT, OTHER], normalize=False)
        assert plain == [[len(tokens(text)), tokens(text)[0], 0, 1] for text in (TEXT, OTHER)]
        assert await asking.ask("/embed", inputs=[tokens(TEXT), tokens(OTHER)], normalize=False) == plain
        await asking.ask("/embed", inputs=TEXT, prompt_name="query")
        assert asking.pooler.seen[-1].ids == tokens("Q: " + TEXT)
        error = await asking.ask("/embed", 422, inputs=TEXT, prompt_name="passage")
        assert "none of the model's prompts: query" in error["error"]


async def test_a_default_prompt_comes_before_texts_and_lower_case_is_made() -> None:
    async with embedding(prompts={"query": "Q: "}, default_prompt="query", lowers=True) as asking:
        await asking.ask("/v1/embeddings", input="HELLO")
        assert asking.pooler.seen[-1].ids == tokens("q: hello")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "there is no text"),
        (["a", 3], "tokens stand beside texts"),
        ([3, "a"], "tokens stand beside texts"),
        ([[1, 100_000]], "a token is none of the model's"),
        ([[-1]], "a token is none of the model's"),
        ([[]], "a text has no tokens"),
        ("a" * 2049, "this model takes 63"),
        (["a"] * 2049, "2049 texts are more than 2048"),
        (5, "Expected"),
        ([True], "Expected"),
    ],
)
async def test_inputs_that_are_refused(value: Any, reason: str) -> None:
    async with embedding() as asking:
        error = await asking.ask("/v1/embeddings", 400, input=value)
        assert reason in error["error"]["message"]
        assert not asking.pooler.seen


async def test_long_texts_are_cut_on_request_and_have_openais_code_otherwise() -> None:
    async with embedding() as asking:
        error = await asking.ask("/v1/embeddings", 400, input=["ab" * 100])
        assert error["error"]["code"] == "context_length_exceeded"
        await asking.ask("/v1/embeddings", input=["xy" * 100], truncate=True)
        assert asking.pooler.seen[-1].ids == tokens("xy" * 100)[: LIMITS.max_input_tokens]
        await asking.ask("/v1/embeddings", input=[[5] * 100], truncate=True)
        assert asking.pooler.seen[-1].ids == [5] * LIMITS.max_input_tokens


async def test_rerankers_order_documents() -> None:
    def length(text: str) -> int:
        return len(make_tokenizer().encode_pair(TEXT, text)[0]) - 6

    documents = ["a", "what is deep", {"text": "Hello world"}]
    lengths = [length("a"), length("what is deep"), length("Hello world")]
    order = sorted(range(3), key=lambda index: -lengths[index])
    async with embedding(ranks=True) as asking:
        found = await asking.ask("/v1/rerank", query=TEXT, documents=documents)
        assert [row["index"] for row in found["results"]] == order
        scores = {row["index"]: row["relevance_score"] for row in found["results"]}
        assert [scores[index] for index in range(3)] == pytest.approx(
            [1 / (1 + math.exp(-number)) for number in lengths]
        )
        assert found["results"][0]["document"]["text"] in (documents[1], "Hello world")
        best = await asking.ask("/rerank", query=TEXT, documents=documents, top_n=1, return_documents=False)
        assert [row.keys() for row in best["results"]] == [{"index", "relevance_score"}]
        teis = await asking.ask("/rerank", query=TEXT, texts=["a", "what is deep"], raw_scores=True)
        assert sorted(teis, key=lambda row: int(row["index"])) == [
            {"index": index, "score": lengths[index]} for index in range(2)
        ]
        scored = await asking.ask("/v1/score", text_1=TEXT, text_2=["a", "what is deep"])
        assert [(row["index"], row["object"]) for row in scored["data"]] == [(0, "score"), (1, "score")]
        await asking.ask("/v1/rerank", 400, query=TEXT, documents=["a"], top_n=0)
        await asking.ask("/v1/score", 400, text_1=["a", "b"], text_2=["a", "b", "c"])
        error = await asking.ask("/v1/embeddings", 404, input=TEXT)
        assert "scores pairs of texts, and gives no embeddings" in error["error"]["message"]


@pytest.mark.parametrize(
    ("logit", "score"), [(-1e30, 0), (-710, 0), (-1, 1 / (1 + math.e)), (0, 0.5), (1e30, 1)]
)
async def test_every_logit_has_a_score(logit: float, score: float) -> None:
    async with embedding(ranks=True) as asking:
        asking.pooler.logit = logit
        (found,) = await asking.ask("/rerank", query=TEXT, texts=[OTHER])
        assert found["score"] == pytest.approx(score)


async def test_without_a_reranker_scores_are_cosines() -> None:
    async with embedding() as asking:
        found = await asking.ask("/v1/score", text_1=[TEXT, TEXT], text_2=[TEXT, "what is deep"])
        expected = [1.0, vector(TEXT) @ vector("what is deep")]
        assert [row["score"] for row in found["data"]] == pytest.approx(expected)
        assert len(asking.pooler.seen) == 2, "each text is computed once"


@pytest.mark.parametrize("ranks", [False, True])
async def test_nothing_to_order_is_refused(ranks: bool) -> None:
    async with embedding(ranks=ranks) as asking:
        error = await asking.ask("/v1/rerank", 400, query=TEXT, documents=[])
        assert "there is no text" in error["error"]["message"]
        await asking.ask("/rerank", 422, query=TEXT, texts=[])
        found = await asking.ask("/v1/rerank", query=TEXT, documents=[OTHER], return_documents=None)
        assert found["results"][0]["document"] == {"text": OTHER}


async def test_who_asks_the_wrong_model_is_told() -> None:
    async with serving() as server:
        for path in POOLED:
            answer = await server.ask("POST", path, {})
            assert answer.status == 404
            assert b"generates text and gives no embeddings or scores" in answer.body
    async with embedding() as asking:
        for path in ("/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/chat"):
            answer = await asking.server.ask("POST", path, {})
            assert answer.status == 404
            assert b"generates no text" in answer.body
        for path in ("/health", "/info", "/v1/models", "/metrics", "/api-doc/openapi.json", "/api/tags"):
            assert (await asking.server.ask("GET", path)).status == 200


async def test_requests_are_counted_and_end_at_their_deadline() -> None:
    async with embedding() as asking:
        await asking.ask("/v1/embeddings", input=[TEXT, OTHER])
        asking.pooler.seconds = 30
        headers = {"x-request-timeout": "0.01"}
        late = await asking.server.ask("POST", "/v1/embeddings", {"input": TEXT}, headers)
        assert late.status == 408
        text = await asking.server.metrics()
        assert "\ntgi_request_count 2\n" in text
        assert "\ntgi_request_success 1\n" in text
        assert '\ntgi_request_failure{err="deadline"} 1\n' in text
        assert asking.server.service.in_flight == 0
