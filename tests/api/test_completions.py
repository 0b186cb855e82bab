"""`/v1/completions`, `/v1/models`, `/detokenize`: tgi-behaviour 2.4, 3.6, 3.7, 3.10, and OpenAI's words."""

import functools
import json
from typing import Any

import pytest
import trio

from tgi.testing.fake_executor import logprob

from .serving import BOS, EOS, LIMITS, Answer, Server, make_tokenizer, saying, serving
from .test_chat import chunks

PATH = "/v1/completions"
HELLO, WORLD = make_tokenizer().encode("Hello world", add_special_tokens=False)
PROMPT = make_tokenizer().encode("what is")


async def complete(server: Server, prompt: Any = "what is", **body: Any) -> Answer:
    return await server.ask("POST", PATH, {"prompt": prompt, **body})


@pytest.mark.contract("R1.5", "2.4", "3.6")
async def test_answer_has_the_keys_of_openai() -> None:
    async with serving(saying("Hello world")) as server:
        answer = await complete(server, temperature=0, model="any")
        body = answer.json
        assert list(body) == [
            "object", "id", "created", "model", "system_fingerprint", "choices", "usage",
        ]  # fmt: skip
        assert (body["object"], body["model"]) == ("text_completion", "some/model")
        assert body["id"] == "cmpl-" + answer.headers["x-request-id"]
        assert body["choices"] == [
            {"index": 0, "text": "Hello world", "logprobs": None, "finish_reason": "stop"}
        ]
        assert body["usage"] == {
            "prompt_tokens": len(PROMPT),
            "completion_tokens": 3,
            "total_tokens": len(PROMPT) + 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert answer.headers["x-prompt-tokens"] == str(len(PROMPT))
        assert answer.headers["x-compute-characters"] == "7"
        assert "x-compute-time" not in answer.headers


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("what is", [len(PROMPT)]),
        (["what is", "Hello"], [len(PROMPT), 2]),
        (PROMPT, [len(PROMPT)]),
        ([[0, HELLO], PROMPT, [5]], [2, len(PROMPT), 1]),
    ],
)
async def test_prompts_are_texts_or_ids_alone_or_in_a_list(prompt: Any, lengths: list[int]) -> None:
    async with serving(saying("Hello")) as server:
        answer = await complete(server, prompt)
        assert [choice["index"] for choice in answer.json["choices"]] == list(range(len(lengths)))
        assert {choice["text"] for choice in answer.json["choices"]} == {"Hello"}
        assert answer.json["usage"]["prompt_tokens"] == sum(lengths)
        assert answer.json["usage"]["completion_tokens"] == 2 * len(lengths)


@pytest.mark.contract("R1.5", "R1.81", "3.7")
async def test_each_token_is_an_event() -> None:
    async with serving(saying("Hello world")) as server:
        events = chunks(await complete(server, stream=True))
        assert [event["choices"] for event in events] == [
            [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": None}],
            [{"index": 0, "text": " world", "logprobs": None, "finish_reason": None}],
            [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
        ]
        assert all("usage" not in event for event in events[:-1])
        assert events[-1]["usage"]["completion_tokens"] == 3
        events = chunks(await complete(server, stream=True, stream_options={"include_usage": True}))
        assert all(event["usage"] is None for event in events[:-1])
        assert events[-1]["choices"] == []
        assert events[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.contract("3.7")
async def test_events_of_several_prompts_mix() -> None:
    async with serving(saying("Hello world")) as server:
        events = chunks(await complete(server, ["what is", "Hello", "a"], stream=True))
        for index in range(3):
            mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
            assert "".join(choice["text"] for choice in mine) == "Hello world"
            assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_log_probabilities_of_the_prompt(stream: bool) -> None:
    """lm-evaluation-harness sends such requests."""
    async with serving(saying("Hello")) as server:
        body = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
        answer = await complete(server, [PROMPT], **body, stream=stream)
        choice = chunks(answer)[0]["choices"][0] if stream else answer.json["choices"][0]
        assert choice["text"] == "<s>what isHello"
        columns = choice["logprobs"]
        assert columns["tokens"] == [make_tokenizer().decode([i]) for i in [*PROMPT, HELLO]]
        assert columns["token_logprobs"] == [None, *map(logprob, PROMPT[1:]), logprob(HELLO)]
        assert columns["top_logprobs"][0] is None
        for value, table in zip(columns["token_logprobs"][1:], columns["top_logprobs"][1:], strict=True):
            assert value == max(table.values())
        assert columns["text_offset"][:2] == [0, 3]
        assert len({len(column) for column in columns.values()}) == 1
        answer = await complete(server, ["what is"], **body, stream=stream)
        choice = chunks(answer)[0]["choices"][0] if stream else answer.json["choices"][0]
        offsets = choice["logprobs"]["text_offset"]
        assert choice["logprobs"]["tokens"] == columns["tokens"]
        assert offsets == [max(0, offset - len("<s>")) for offset in columns["text_offset"]]
        assert choice["text"][offsets[-1] :] == "Hello"


async def test_echo_without_anything_to_generate() -> None:
    async with serving(saying("Hello")) as server:
        answer = await complete(server, echo=True, max_tokens=0, logprobs=0)
        choice = answer.json["choices"][0]
        assert choice["text"] == "what is"
        assert len(choice["logprobs"]["tokens"]) == len(PROMPT)
        tables = choice["logprobs"]["top_logprobs"]
        assert tables[0] is None
        assert [list(table) for table in tables[1:]] == [[text] for text in choice["logprobs"]["tokens"][1:]]
        assert answer.json["usage"]["completion_tokens"] == 0
        assert answer.headers["x-generated-tokens"] == "0"
        events = chunks(await complete(server, echo=True, max_tokens=0, n=2, stream=True))
        assert [event["choices"][0]["text"] for event in events] == ["what is"] * 2
        assert [event["usage"]["completion_tokens"] for event in events] == [0, 0]
        answer = await complete(server, max_tokens=0)
        assert (answer.json["choices"][0]["text"], answer.json["usage"]["completion_tokens"]) == ("", 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
async def test_offset_of_a_token_is_that_of_its_character(echo: bool, stream: bool) -> None:
    said = "é 😀 x"
    async with serving(saying(said), bos=False) as server:
        body = {"max_tokens": 20, "logprobs": 0, "echo": echo, "stream": stream}
        answer = await complete(server, "a 🎻 b", **body)
        choices = [event["choices"][0] for event in chunks(answer)] if stream else answer.json["choices"]
        text = "".join(choice["text"] for choice in choices)
        assert text == ("a 🎻 b" if echo else "") + said
        columns = [choice["logprobs"] for choice in choices]
        tokens = [token for column in columns for token in column["tokens"]]
        offsets = [offset for column in columns for offset in column["text_offset"]]
        assert len(tokens) > len(text), "no character of several tokens"
        for token, offset in zip(tokens[:-1], offsets[:-1], strict=True):
            if "\ufffd" not in token:
                assert text[offset:].startswith(token)
            else:
                assert text[offset] in "é😀🎻"


@pytest.mark.parametrize("stream", [False, True])
async def test_offsets_beside_special_tokens_and_broken_characters(stream: bool) -> None:
    encode = functools.partial(make_tokenizer().encode, add_special_tokens=False)
    a, b, (begun, _), (lead, *_) = *encode("ab"), encode("é"), encode("😀")
    said = [a, BOS, b, begun, a, BOS, begun, lead, b, a]
    async with serving(lambda _params, draw: said[draw] if draw < len(said) else EOS) as server:
        answer = await complete(server, "a", max_tokens=20, logprobs=0, stream=stream)
        choices = [event["choices"][0] for event in chunks(answer)] if stream else answer.json["choices"]
        assert "".join(choice["text"] for choice in choices) == "ab\ufffda\ufffd\ufffdba"
        offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
        assert offsets == [0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [("Hello world", " world", "Hello"), ("Hello world", "wor", "Hello "), ("Hello", None, "Hello")],
)
async def test_the_last_possible_token_may_end_the_text(
    said: str, stop: str | None, text: str, stream: bool
) -> None:
    """It completes a stop string, or is an end token; the native routes say `length`."""
    async with serving(saying(said)) as server:
        answer = await complete(server, stop=stop, max_tokens=2, stream=stream)
        choices = [event["choices"][0] for event in chunks(answer)] if stream else answer.json["choices"]
        assert "".join(choice["text"] for choice in choices) == text
        assert choices[-1]["finish_reason"] == "stop"
        native = await server.generate({"max_new_tokens": 2, "details": True, "stop": [stop] if stop else []})
        assert native.json["details"]["finish_reason"] == "length"


async def test_best_of_answers_the_n_most_likely() -> None:
    """The fake model counts up from the seed; token t has the log-probability -(t % 8) / 8."""
    async with serving() as server:
        decode = make_tokenizer().decode
        answer = await complete(server, n=2, seed=40, max_tokens=1)
        assert [c["text"] for c in answer.json["choices"]] == [decode([40]), decode([41])]
        answer = await complete(server, n=2, best_of=4, seed=45, max_tokens=1)
        assert [c["text"] for c in answer.json["choices"]] == [decode([48]), decode([45])]
        assert answer.json["usage"]["completion_tokens"] == 4
        answer = await complete(server, ["a", "b"], n=2, seed=40, max_tokens=1)
        assert [c["text"] for c in answer.json["choices"]] == 2 * [decode([40]), decode([41])]
        assert [c["index"] for c in answer.json["choices"]] == [0, 1, 2, 3]
        prompts = len(make_tokenizer().encode("a")) + len(make_tokenizer().encode("b"))
        assert answer.json["usage"]["prompt_tokens"] == prompts


@pytest.mark.contract("R1.90", "V30", "V31", "--max-client-batch-size")
@pytest.mark.parametrize("stream", [False, True])
async def test_suffix_and_too_many_prompts_are_refused(stream: bool) -> None:
    async with serving() as server:
        answer = await complete(server, ["a"] * 5, suffix="x", stream=stream)
        assert (answer.status, answer.json["error_type"]) == (400, "suffix not supported")
        assert answer.json["error"]["message"] == (
            "Suffix is not supported and can be achieved by preprocessing the prompt."
        )
        answer = await complete(server, ["a"] * 5, suffix="", stream=stream)
        assert (answer.status, answer.json["error_type"]) == (400, "batch size exceeded")
        assert answer.json["error"]["message"] == (
            "Number of prompts exceeds the maximum allowed batch size of 4"
        )


@pytest.mark.contract("3.6")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": ""}, "`prompt` cannot be empty"),
        ({"prompt": ["a", ""]}, "`prompt` cannot be empty"),
        ({"prompt": [[1], []]}, "`prompt` cannot be empty"),
        ({"prompt": [1, 1000]}, "tokenizer error the model has 1000 tokens, and no token 1000"),
        ({"best_of": 1, "n": 2}, "`best_of` must be >= `n`. Given: 1 and 2"),
        ({"prompt": ["a"] * 3, "n": 3}, "`n` or `best_of` times the prompts must be <= 8. Given: 9"),
        ({"best_of": 9}, "`best_of` must be > 0 and <= 8. Given: 9"),
        ({"logprobs": 6}, "`logprobs` must be >= 0 and <= 5. Given: 6"),
        (
            {"prompt": "a", "max_tokens": 64},
            "This model's maximum context length is 64 tokens. `prompt` tokens + `max_tokens` must be <= 64. "
            "Given: 2 `prompt` tokens and 64 `max_tokens`",
        ),
        (
            {"prompt": [5] * 64},
            "This model's maximum context length is 64 tokens. `prompt` must have less than 63 tokens. "
            "Given: 64",
        ),
    ],
)
async def test_impossible_requests_are_refused(body: dict[str, Any], message: str) -> None:
    async with serving() as server:
        for stream in (False, True):
            answer = await server.ask("POST", PATH, {"prompt": "a", **body, "stream": stream})
            text = f"Input validation error: {message}"
            assert (answer.status, answer.json["error"]["message"]) == (400, text)
        answer = await complete(server, best_of=2, stream=True)
        assert answer.status == 400


@pytest.mark.contract("R1.91")
async def test_each_prompt_and_choice_takes_a_permit() -> None:
    async with serving(saying("Hello")) as server:
        assert (await complete(server, ["a", "b"], n=4)).status == 200
        with server.service.permits(1):
            answer = await complete(server, ["a", "b"], n=4)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.json["error_type"] == "overloaded"
        assert server.service.in_flight == 0


@pytest.mark.contract("R1.13", "3.10")
async def test_models_lists_the_served_model() -> None:
    async with serving() as server:
        entry = {"id": "some/model", "object": "model", "created": 0, "owned_by": "some/model"}
        entry |= {"root": "some/model", "max_model_len": LIMITS.max_total_tokens, "parent": None}
        answer = await server.ask("GET", "/v1/models")
        assert answer.json == {"object": "list", "data": [entry]}
        assert (await server.ask("GET", "/v1/models/some/model")).json == entry
        answer = await server.ask("GET", "/v1/models/other")
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
        assert answer.json["error"]["message"] == "The model other does not exist"


async def test_detokenize_answers_text() -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/detokenize", {"tokens": [0, HELLO, WORLD, EOS]})
        assert answer.json == {"prompt": "<s>Hello world</s>"}
        assert (await server.ask("POST", "/detokenize", {"tokens": []})).json == {"prompt": ""}
        answer = await server.ask("POST", "/detokenize", {"tokens": [1000]})
        assert (answer.status, answer.json["error_type"]) == (422, "validation")


async def test_a_client_that_leaves_a_stream_frees_all_choices() -> None:
    async with serving(step_seconds=0.01) as server:
        body = json.dumps({"prompt": "a", "n": 4, "stream": True, "max_tokens": 60}).encode()
        stream = await server.connect()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        await stream.send_all(head.encode() + body)
        assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
        await stream.aclose()
        while server.service.in_flight:
            await trio.sleep(0.01)
        assert 'tgi_request_failure{err="dropped"} 1' in await server.metrics()
