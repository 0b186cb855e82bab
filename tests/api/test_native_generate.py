"""`/generate` and `/`: tgi-behaviour 1.5, 2.7, 3.1, 5.6, 5.7, 8.2."""

import functools
from typing import Any

import attrs
import pytest
import trio

from tgi.protocol import LaneParams
from tgi.testing.fake_executor import counting, logprob

from .serving import BOS, EOS, INFO, LIMITS, Answer, make_tokenizer, saying, serving

HELLO, WORLD = make_tokenizer().encode("Hello world", add_special_tokens=False)


async def answer_to(
    parameters: dict[str, Any], text: str = "Hello world", inputs: str = "what is", **given: Any
) -> Answer:
    async with serving(saying(text), **given) as server:
        return await server.generate(parameters, inputs)


@pytest.mark.contract("R1.2", "3.1")
async def test_without_details_there_is_only_the_text() -> None:
    assert (await answer_to({})).body == b'{"generated_text":"Hello world"}'


@pytest.mark.contract("3.1")
async def test_details_and_all_their_keys_in_order() -> None:
    details = (await answer_to({"details": True})).json["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
    assert details == {
        "finish_reason": "eos_token",
        "generated_tokens": 3,
        "seed": None,
        "prefill": [],
        "tokens": [
            {"id": HELLO, "text": "Hello", "logprob": logprob(HELLO), "special": False},
            {"id": WORLD, "text": " world", "logprob": logprob(WORLD), "special": False},
            {"id": EOS, "text": "</s>", "logprob": logprob(EOS), "special": True},
        ],
    }


@pytest.mark.contract("3.1")
async def test_prefill_has_every_prompt_token_and_the_first_without_logprob() -> None:
    details = (await answer_to({"decoder_input_details": True})).json["details"]
    tokenizer = make_tokenizer()
    prompt = tokenizer.encode("what is")
    assert prompt[0] == BOS
    expected = [
        {"id": token, "text": tokenizer.decode([token]), "logprob": logprob(token)} for token in prompt
    ]
    expected[0]["logprob"] = None
    assert details["prefill"] == expected


@pytest.mark.contract("3.1")
async def test_top_tokens_are_there_when_asked_for() -> None:
    details = (await answer_to({"details": True, "top_n_tokens": 2})).json["details"]
    assert list(details)[-1] == "top_tokens"
    assert [len(top) for top in details["top_tokens"]] == [2, 2, 2]
    assert details["top_tokens"][0][0] == {
        "id": HELLO, "text": "Hello", "logprob": logprob(HELLO), "special": False,
    }  # fmt: skip


@pytest.mark.contract("R3.10")
async def test_best_of_returns_the_sequence_with_the_highest_mean_logprob() -> None:
    async with serving(counting(200)) as server:
        answer = await server.generate(
            {"best_of": 2, "do_sample": True, "details": True, "max_new_tokens": 2}
        )
        details = answer.json["details"]
        (other,) = details["best_of_sequences"]
        assert list(other) == [
            "generated_text",
            "finish_reason",
            "generated_tokens",
            "seed",
            "prefill",
            "tokens",
        ]
        means = [sum(token["logprob"] for token in one["tokens"]) / 2 for one in (details, other)]
        assert means[0] >= means[1]
        assert details["seed"] != other["seed"]
        assert (
            await server.generate({"best_of": 2, "do_sample": True, "max_new_tokens": 1})
        ).json.keys() == {"generated_text"}
        assert server.service.in_flight == 0


@pytest.mark.contract("R3.11")
async def test_the_full_text_begins_with_the_inputs() -> None:
    assert (await answer_to({"return_full_text": True})).json["generated_text"] == "what isHello world"


@pytest.mark.contract("R1.1", "R2.70")
@pytest.mark.parametrize(
    ("tag", "given", "full"),
    [
        (None, None, True),
        ("text-generation", None, True),
        ("text2text-generation", None, False),
        (None, False, False),
        ("text2text-generation", True, True),
    ],
)
async def test_full_text_is_the_default_of_the_compatible_route(
    tag: str | None, given: bool | None, full: bool
) -> None:
    async with serving(saying("Hello"), info=attrs.evolve(INFO, pipeline_tag=tag)) as server:
        answer = await server.generate({"return_full_text": given}, "x", path="/")
        assert answer.json == [{"generated_text": "xHello" if full else "Hello"}]


@pytest.mark.contract("1.5")
async def test_the_headers_of_an_answer() -> None:
    headers = (await answer_to({}, inputs="é what")).headers
    assert headers["content-type"] == "application/json"
    assert headers["x-compute-type"] == "gpu+optimized"
    assert headers["x-compute-characters"] == "6"
    assert headers["x-prompt-tokens"] == str(len(make_tokenizer().encode("é what")))
    assert headers["x-generated-tokens"] == "3"
    assert 0 < float(headers["x-compute-time"]) < 60
    for name in ("total", "validation", "queue", "inference"):
        assert int(headers[f"x-{name}-time"]) >= 0
    assert (
        int(headers["x-time-per-token"]) <= int(headers["x-inference-time"]) <= int(headers["x-total-time"])
    )


@pytest.mark.contract("R1.70")
async def test_errors_carry_none_of_these_headers() -> None:
    answer = await answer_to({"top_k": 0})
    assert answer.status == 422
    assert [name for name in answer.headers if name.startswith("x-")] == ["x-request-id"]


@pytest.mark.contract("P-default", "R2.73")
async def test_p_default_a_bare_request_samples_with_a_seed_of_its_own() -> None:
    drawn = set()

    def script(params: LaneParams, _draw: int) -> int:
        drawn.add((params.sampling.sample, params.sampling.temperature, params.sampling.seed))
        return EOS

    async with serving(script) as server:
        for _ in range(3):
            assert (await server.ask("POST", "/generate", {"inputs": "x"})).status == 200
        assert len(drawn) == 3
        assert {(sample, temperature) for sample, temperature, _ in drawn} == {(True, 1.0)}
        drawn.clear()
        await server.generate({})
        assert [sample for sample, *_ in drawn] == [False]


@pytest.mark.contract("R2.73")
async def test_the_seed_is_reported_if_it_mattered() -> None:
    async with serving(counting(200)) as server:
        answer = await server.generate(
            {"max_new_tokens": 2, "do_sample": True, "details": True, "seed": 2**64 - 1}
        )
        assert answer.json["details"]["seed"] == 2**64 - 1
        for greedy in ({}, {"temperature": 1.0}, {"seed": 5}):
            answer = await server.generate({"max_new_tokens": 2, "details": True, **greedy})
            assert answer.json["details"]["seed"] is None
        for sampled in ({"temperature": 0.5}, {"top_k": 1}, {"top_p": 0.5}, {"typical_p": 0.5}):
            answer = await server.generate({"max_new_tokens": 2, "details": True, **sampled})
            assert answer.json["details"]["seed"] is not None


@pytest.mark.contract("12.7")
@pytest.mark.parametrize(
    ("parameters", "text", "reason", "tokens"),
    [
        ({"max_new_tokens": 1}, "Hello", "length", 1),
        ({"max_new_tokens": 3}, "Hello world", "length", 3),  # S40: the third is EOS
        ({"max_new_tokens": 4}, "Hello world", "eos_token", 3),
        ({"stop": ["wor"]}, "Hello wor", "stop_sequence", 2),  # S43: inside a token
        ({"stop": ["o w"]}, "Hello w", "stop_sequence", 2),  # across tokens
        ({"stop": ["world"]}, "Hello world", "stop_sequence", 2),
        ({"stop": ["zzz", "ell"]}, "Hell", "stop_sequence", 1),
        ({"stop": [""]}, "Hello", "stop_sequence", 1),
        ({"stop": ["</s>"]}, "Hello world", "eos_token", 3),
    ],
)
async def test_where_a_generation_ends(
    parameters: dict[str, Any], text: str, reason: str, tokens: int
) -> None:
    body = (await answer_to({"details": True, **parameters})).json
    assert body["generated_text"] == text
    assert body["details"]["finish_reason"] == reason
    assert body["details"]["generated_tokens"] == len(body["details"]["tokens"]) == tokens


async def test_truncate_keeps_the_first_token_and_the_end() -> None:
    details = (await answer_to({"decoder_input_details": True, "truncate": 2}, inputs="Hello world")).json[
        "details"
    ]
    assert [token["id"] for token in details["prefill"]] == [BOS, WORLD]


@pytest.mark.contract("R1.91", "V05")
async def test_permits_are_taken_and_given_back() -> None:
    limits = attrs.evolve(LIMITS, max_concurrent_requests=2)
    async with (
        serving(counting(200), limits=limits, step_seconds=0.02) as server,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(server.generate, {"max_new_tokens": 60})
        while server.service.in_flight < 1:
            await trio.sleep(0.01)
        for path in ("/generate", "/generate_stream", "/"):
            two = {"best_of": 2, "do_sample": True} if path != "/generate_stream" else {}
            if not two:
                nursery.start_soon(functools.partial(server.generate, {"max_new_tokens": 60}, path=path))
                while server.service.in_flight < 2:
                    await trio.sleep(0.01)
            answer = await server.generate(two, path=path)
            assert answer.status == 429
            assert answer.json == {"error": "Model is overloaded", "error_type": "overloaded"}
            assert int(answer.headers["retry-after"]) > 0
        assert (await server.ask("POST", "/tokenize", {"inputs": "x"})).status == 200
        nursery.cancel_scope.cancel()
    assert 'tgi_request_failure{err="overloaded"} 3' in server.service.metrics.render().decode()


async def test_a_client_that_leaves_frees_its_permit_and_its_row() -> None:
    async with serving(counting(200), step_seconds=0.02) as server:
        for path in ("/generate", "/generate_stream"):
            with trio.move_on_after(0.2):
                await server.generate({"max_new_tokens": 60, "best_of": 1}, path=path)
            while server.service.in_flight:
                await trio.sleep(0.01)
            assert server.service.engine is not None
            statistics = server.service.engine.scheduler.statistics()
            assert (statistics.running, statistics.waiting, statistics.blocks.used) == (0, 0, 0)
    assert 'tgi_request_failure{err="dropped"} 2' in server.service.metrics.render().decode()
