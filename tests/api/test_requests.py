"""How requests are understood: tgi-behaviour 2.1 to 2.4, 2.6 and 2.7, over a real port."""

from typing import Any

import attrs
import pytest

from tgi.protocol import LaneParams
from tgi.sampling import SamplingParams

from .serving import BOS, EOS, LIMITS, Answer, Server, make_tokenizer, saying, serving

USER = {"role": "user", "content": "Hello"}
OPTIONAL = {
    "/generate": """best_of temperature repetition_penalty frequency_penalty top_k top_p typical_p
        max_new_tokens return_full_text truncate seed top_n_tokens grammar adapter_id""",
    "/v1/chat/completions": """model max_tokens temperature top_p frequency_penalty presence_penalty stop seed
        logprobs top_logprobs tools tool_choice tool_prompt response_format logit_bias""",
    "/v1/completions": """model max_tokens temperature top_p frequency_penalty repetition_penalty stop seed
        suffix""",
}


def body_of(path: str, parameters: dict[str, Any]) -> dict[str, Any]:
    if path.startswith("/v1/chat"):
        return {"messages": [USER], **parameters}
    if path.startswith("/v1/"):
        return {"prompt": "x", **parameters}
    return {"inputs": "x", "parameters": parameters}


@pytest.mark.contract("D3")
@pytest.mark.parametrize("path", OPTIONAL)
async def test_null_is_the_same_as_nothing(path: str) -> None:
    async with serving(saying("Hello")) as server:
        nulls = dict.fromkeys(OPTIONAL[path].split())
        with_nulls = await server.ask("POST", path, body_of(path, nulls))
        without = await server.ask("POST", path, body_of(path, {}))
        assert with_nulls.status == without.status == 200, with_nulls.body
        assert content_of(with_nulls) == content_of(without)


def content_of(answer: Answer) -> dict[str, Any]:
    """The body without what tells two equal requests apart."""
    content = {key: value for key, value in answer.json.items() if key not in ("id", "created")}
    content.get("usage", {}).pop("prompt_tokens_details", None)  # cached tokens
    return content


@pytest.mark.contract("D3")
@pytest.mark.parametrize("name", ["do_sample", "watermark", "details", "decoder_input_details"])
async def test_what_has_a_default_is_not_null(name: str) -> None:
    async with serving() as server:
        answer = await server.generate({name: None})
        assert answer.status == 422
        text = f"Expected `bool`, got `null` - at `$.parameters.{name}`"
        assert answer.body.decode().partition("target type: ")[2] == text


async def params_of(path: str, parameters: dict[str, Any]) -> SamplingParams:
    """Return the parameters that reach the rank."""
    seen: list[SamplingParams] = []

    def script(params: LaneParams, _draw: int) -> int:
        seen.append(params.sampling)
        return EOS

    async with serving(script) as server:
        answer = await server.ask("POST", path, body_of(path, parameters))
        assert answer.status == 200, answer.body
    return seen[0]


@pytest.mark.contract("2.2")
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
async def test_the_parameters_reach_the_rank(path: str) -> None:
    given = {
        "temperature": 0.5,
        "repetition_penalty": 1.25,
        "frequency_penalty": 0.75,
        "top_k": 7,
        "top_p": 0.25,
        "typical_p": 0.125,
        "seed": 2**64 - 1,
        "watermark": True,
    }
    params = await params_of(path, given)
    assert {name: getattr(params, name) for name in given} == given
    assert params.sample
    neutral = await params_of(path, {})
    assert (neutral.temperature, neutral.repetition_penalty, neutral.frequency_penalty) == (1, 1, 0)
    assert (neutral.top_k, neutral.top_p, neutral.typical_p, neutral.watermark) == (0, 1, 1, False)
    assert not neutral.sample


@pytest.mark.contract("2.3", "2.4")
async def test_the_parameters_of_completions_reach_the_rank() -> None:
    given = {"temperature": 0.5, "repetition_penalty": 1.25, "top_p": 0.25, "seed": 5}
    params = await params_of("/v1/completions", given)
    assert {name: getattr(params, name) for name in given} == given
    for temperature, sampled in ((0, False), (0.0, False), (-0.0, False), (None, True), (1, True)):
        assert (await params_of("/v1/completions", {"temperature": temperature})).sample == sampled
        assert (await params_of("/v1/chat/completions", {"temperature": temperature})).sample == sampled


BROKEN: dict[str, dict[str, Any]] = {
    "you must use sampling when `best_of` is > 1": {"best_of": 2},
    "`repetition_penalty` must be strictly positive": {"repetition_penalty": 0},
    "`frequency_penalty` must be >= -2.0 and <= 2.0": {"frequency_penalty": 3},
    "`top_p` must be > 0.0 and < 1.0": {"top_p": 1},
    "`typical_p` must be > 0.0 and < 1.0": {"typical_p": 1},
    "`top_k` must be strictly positive": {"top_k": 0},
    "`max_new_tokens` must be strictly positive": {"max_new_tokens": 0},
    "`stop` supports up to 4 stop sequences. Given: 5": {"stop": ["a"] * 5},
    "`seed` must not be set when `best_of` > 1": {"seed": 1, "best_of": 2, "do_sample": True},
    "`top_n_tokens` must be >= 0 and <= 5. Given: 6": {"top_n_tokens": 6},
    "`inputs` cannot be empty": {"inputs": ""},
    "`truncate` must be strictly positive and less than 63. Given: 0": {"truncate": 0},
    "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 65 `inputs` tokens and 1 `max_new_tokens`": {
        "inputs": "Hello" * 64,
        "max_new_tokens": 1,
    },
    "`inputs` must have less than 63 tokens. Given: 64": {"inputs": "Hello" * 63},
    "grammar is not valid: a schema must be an object or a boolean": {
        "grammar": {"type": "json", "value": [1]}
    },
}
"""A request that breaks each rule of 2.6 from V06 on, in order; V07 is left out because it breaks V06."""


def broken(names: list[str]) -> dict[str, Any]:
    """A body that breaks all these rules."""
    parameters: dict[str, Any] = {}
    for name in reversed(names):
        parameters |= BROKEN[name]
    inputs = parameters.pop("inputs", "Hello")
    if names[0].startswith("you must"):  # any of these would be sampling
        parameters = {
            k: v for k, v in parameters.items() if k not in ("top_p", "typical_p", "top_k", "do_sample")
        }
    return {"inputs": inputs, "parameters": parameters}


@pytest.mark.contract("2.6")
async def test_the_first_rule_that_is_broken_is_told() -> None:
    async with serving() as server:
        names = list(BROKEN)
        for first in range(len(names)):
            answer = await server.ask("POST", "/generate", broken(names[first:]))
            assert answer.json["error"] == f"Input validation error: {names[first]}"
        answer = await server.ask(
            "POST", "/generate", {"inputs": "", "parameters": {"temperature": 0, "repetition_penalty": 0}}
        )
        assert answer.json["error"].endswith("`temperature` must be strictly positive")


@pytest.mark.contract("V05")
@pytest.mark.parametrize(
    ("path", "parameters", "status"),
    [
        ("/generate", {"best_of": 3}, 422),  # V04
        ("/generate_stream", {"best_of": 2}, 422),  # V01
        ("/generate_stream", {"decoder_input_details": True}, 422),  # V02
        ("/generate", {"temperature": 0}, 429),  # V07
        ("/generate_stream", {"temperature": 0}, 429),
    ],
)
async def test_the_permit_comes_after_v04_and_before_v06(
    path: str, parameters: dict[str, Any], status: int
) -> None:
    async with serving(limits=attrs.evolve(LIMITS, max_concurrent_requests=0)) as server:
        assert (await server.generate(parameters, path=path)).status == status


@pytest.mark.contract("R2.71")
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_the_prompt_is_not_repeated_unless_asked_for(path: str) -> None:
    async with serving(saying("Hello")) as server:
        for given, text in ((None, "Hello"), (False, "Hello"), (True, "xHello")):
            answer = await server.generate({"return_full_text": given}, "x", path=path)
            body = answer.events[-1] if path == "/generate_stream" else answer.json
            assert body["generated_text"] == text


@pytest.mark.contract("R2.74")
@pytest.mark.parametrize(("truncate", "length"), [(None, 3), (63, 3), (2, 2), (1, 1)])
async def test_the_length_of_the_prompt(truncate: int | None, length: int) -> None:
    prompt = make_tokenizer().encode("Hello world")
    assert (prompt[0], len(prompt)) == (BOS, 3)
    async with serving(saying("Hello")) as server:
        answer = await server.generate({"truncate": truncate}, "Hello world")
        assert answer.headers["x-prompt-tokens"] == str(length)
        answer = await server.generate(
            {"truncate": truncate, "details": True}, "Hello world", path="/generate_stream"
        )
        assert answer.events[-1]["details"]["input_length"] == length


async def predicted(server: Server, parameters: dict[str, Any]) -> str:
    body = {"instances": [{"inputs": "x", "parameters": parameters}]}
    (text,) = (await server.ask("POST", "/vertex", body)).json["predictions"]
    return str(text)


async def test_vertex_heeds_every_parameter() -> None:
    """TGI: only max_new_tokens and seed."""
    async with serving(saying("Hello world")) as server:
        assert await predicted(server, {}) == "Hello world"
        assert await predicted(server, {"stop": ["wor"]}) == "Hello wor"
        assert await predicted(server, {"max_new_tokens": 1}) == "Hello"
        assert await predicted(server, {"return_full_text": True}) == "xHello world"
    seen = set()

    def script(params: LaneParams, _draw: int) -> int:
        seen.add((params.sampling.sample, params.sampling.temperature))
        return EOS

    async with serving(script) as server:
        for parameters in ({}, {"temperature": 0.5}):
            await predicted(server, parameters)
        await server.ask("POST", "/vertex", {"instances": [{"inputs": "x"}]})
        assert seen == {(False, 1), (True, 0.5), (True, 1)}


@pytest.mark.contract("R1.94")
async def test_each_text_of_an_instance_takes_a_permit_and_there_is_a_limit_to_them() -> None:
    async with serving(saying("Hello world")) as server:
        best = {"do_sample": True, "best_of": 2}
        instance = {"inputs": "x", "parameters": best}
        answer = await server.ask("POST", "/vertex", {"instances": [instance] * 4})
        assert answer.json == {"predictions": ["Hello world"] * 4}
        answer = await server.ask("POST", "/vertex", {"instances": [instance] * 5})
        assert (answer.status, answer.json["error_type"]) == (429, "overloaded")
        answer = await server.ask(
            "POST", "/vertex", {"instances": [{"inputs": "x", "parameters": best | {"best_of": 3}}]}
        )
        assert answer.status == 422
        assert answer.json["error"].endswith("`best_of` must be > 0 and <= 2. Given: 3")


async def test_more_instances_than_permits_are_refused_unread() -> None:
    async with serving() as server:
        for count, status in (
            (LIMITS.max_concurrent_requests, 422),
            (LIMITS.max_concurrent_requests + 1, 429),
        ):
            answer = await server.ask("POST", "/vertex", {"instances": [{}] * count})
            assert answer.status == status
        assert (
            'tgi_request_failure{err="overloaded"} 1' in (await server.ask("GET", "/metrics")).body.decode()
        )


async def refused(server: Server, path: str, inputs: str) -> Answer:
    body: dict[str, Any] = {"instances": [{"inputs": inputs}]}
    if path != "/vertex":
        data = {"name": "i", "shape": [1], "datatype": "BYTES", "data": list(inputs.encode())}
        body = {"id": "1", "inputs": [data], "outputs": [{"name": "o"}]}
    return await server.ask("POST", path, body)


@pytest.mark.parametrize("path", ["/vertex", "/v2/models/m/versions/1/infer"])
async def test_errors_are_the_true_ones(path: str) -> None:
    """TGI: always 500, Incomplete generation."""
    async with serving(limits=attrs.evolve(LIMITS, max_concurrent_requests=1)) as server:
        answer = await refused(server, path, "")
        assert answer.status == 422
        assert answer.json == {
            "error": "Input validation error: `inputs` cannot be empty",
            "error_type": "validation",
        }
    async with serving(limits=attrs.evolve(LIMITS, max_concurrent_requests=0)) as server:
        assert (await refused(server, path, "x")).status == 429


@pytest.mark.contract("R2.76")
async def test_tokenize_checks_nothing() -> None:
    async with serving() as server:
        wrong = {"temperature": -1, "truncate": 0, "max_new_tokens": 0, "best_of": 9, "stop": ["a"] * 9}
        plain = await server.generate({}, "Hello world", path="/tokenize")
        answer = await server.generate(wrong, "Hello world", path="/tokenize")
        assert answer.status == 200
        assert [piece["text"] for piece in answer.json] == ["", "Hello", " world"]
        assert answer.body == plain.body
