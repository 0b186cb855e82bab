"""`/v1/chat/completions` and `/chat_tokenize`: tgi-behaviour 3.4, 3.5, 3.8, 4.3, 4.4, and OpenAI's words."""

import json
from typing import Any

import attrs
import pytest

from tgi.errors import GenerationFailed
from tgi.testing.fake_executor import logprob

from .serving import EOS, LIMITS, TEMPLATE, Answer, Server, make_tokenizer, saying, serving

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "Hello"}
HELLO, WORLD = make_tokenizer().encode("Hello world", add_special_tokens=False)


async def chat(server: Server, **body: Any) -> Answer:
    return await server.ask("POST", PATH, {"messages": [USER], **body})


def chunks(answer: Answer) -> list[Any]:
    """Return the events of a stream, which ends as R1.81 requires."""
    assert answer.status == 200, answer.body
    blocks = answer.body.decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@pytest.mark.contract("R1.4", "3.4", "R3.41", "R3.43", "C20")
async def test_answer_has_the_keys_of_openai() -> None:
    async with serving(saying("Hello world")) as server:
        answer = await chat(server, temperature=0)
        assert answer.status == 200
        body = answer.json
        assert list(body) == [
            "object", "id", "created", "model", "system_fingerprint", "choices", "usage",
        ]  # fmt: skip
        assert body["object"] == "chat.completion"
        assert body["id"] == "chatcmpl-" + answer.headers["x-request-id"]
        assert body["model"] == "some/model"
        assert body["system_fingerprint"].endswith("-native")
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello world"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        prompt = make_tokenizer().encode("<s>[user]Hello[assistant]", add_special_tokens=False)
        assert body["usage"] == {
            "prompt_tokens": len(prompt),
            "completion_tokens": 3,
            "total_tokens": len(prompt) + 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


@pytest.mark.contract("R3.40")
@pytest.mark.parametrize(
    ("asked", "told"), [(None, "some/model"), ("tgi", "some/model"), ("dummy", "dummy"), ("gpt-4", "gpt-4")]
)
async def test_any_model_name_is_accepted_and_echoed(asked: str | None, told: str) -> None:
    async with serving(saying("Hello")) as server:
        assert (await chat(server, model=asked)).json["model"] == told


@pytest.mark.contract("1.5", "R2.74")
async def test_headers_tell_prompt_and_times() -> None:
    async with serving(saying("Hello")) as server:
        headers = (await chat(server)).headers
        text = "<s>[user]Hello[assistant]"
        assert headers["x-compute-characters"] == str(len(text))
        assert headers["x-generated-tokens"] == "2"
        assert int(headers["x-prompt-tokens"]) == len(make_tokenizer().encode(text, add_special_tokens=False))
        assert float(headers["x-compute-time"]) > 0
        for name in ("total-time", "validation-time", "queue-time", "inference-time", "time-per-token"):
            assert headers["x-" + name].isdigit()
        streamed = (await chat(server, stream=True)).headers
        assert streamed["content-type"] == "text/event-stream; charset=utf-8"
        assert streamed["x-accel-buffering"] == "no"
        assert streamed["cache-control"] == "no-cache"
        assert "x-compute-type" in streamed
        assert "x-compute-time" not in streamed


@pytest.mark.contract("R1.4", "R1.80", "R1.81", "3.5", "R3.50", "R3.51", "R3.52", "R3.53", "R3.55")
async def test_each_token_is_an_event_and_so_are_beginning_and_end() -> None:
    async with serving(saying("Hello world")) as server:
        events = chunks(await chat(server, stream=True, temperature=0))
        for event in events:
            assert list(event) == [
                "object", "id", "created", "model", "system_fingerprint", "choices", "usage",
            ]  # fmt: skip
            assert event["object"] == "chat.completion.chunk"
            assert event["usage"] is None
        assert [event["choices"] for event in events] == [
            [_choice({"role": "assistant", "content": ""})],
            [_choice({"content": "Hello"})],
            [_choice({"content": " world"})],
            [_choice({}, "stop")],
        ]


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


@pytest.mark.contract("R3.54")
async def test_usage_comes_in_an_event_of_its_own() -> None:
    async with serving(saying("Hello")) as server:
        events = chunks(await chat(server, stream=True, stream_options={"include_usage": True}))
        assert events[-1]["choices"] == []
        usage = events[-1]["usage"]
        assert usage["completion_tokens"] == 2
        assert usage["total_tokens"] == usage["prompt_tokens"] + 2
        assert all(event["usage"] is None for event in events[:-1])
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = chunks(await chat(server, stream=True, stream_options=options))
        assert [event["usage"]["completion_tokens"] for event in events] == [1, 1, 2, 2]


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_counts_cached_tokens(stream: bool) -> None:
    async with serving(saying("Hello")) as server:
        messages = [{"role": "user", "content": "x" * 40}]
        cached = []
        for _ in range(2):
            answer = await chat(
                server,
                messages=messages,
                max_tokens=2,
                **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
            )
            usage = (chunks(answer)[-1] if stream else answer.json)["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert cached[0] == 0
        assert LIMITS.block_size <= cached[1] < usage["prompt_tokens"]


@pytest.mark.contract("R3.44", "R3.56")
async def test_log_probabilities_with_bytes_and_top_tokens() -> None:
    async with serving(saying("Hello")) as server:
        answer = await chat(server, logprobs=True, top_logprobs=2, temperature=0)
        content = answer.json["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["Hello", "</s>"]
        assert [entry["logprob"] for entry in content] == [logprob(HELLO), logprob(EOS)]
        assert content[0]["bytes"] == list(b"Hello")
        assert len(content[0]["top_logprobs"]) == 2
        assert content[0]["top_logprobs"][0] == {
            "token": "Hello",
            "logprob": logprob(HELLO),
            "bytes": list(b"Hello"),
        }
        streamed = chunks(await chat(server, logprobs=True, top_logprobs=2, temperature=0, stream=True))
        told = [event["choices"][0]["logprobs"] for event in streamed]
        assert told[0] is None
        assert [logprobs["content"] for logprobs in told[1:]] == [[one] for one in content]


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("world", "Hello "),
        (["wor", "ld"], "Hello "),
        (["lo w"], "Hel"),
        ("Hello", ""),
        (["nothing"], "Hello world"),
        (None, "Hello world"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_are_not_part_of_the_text(stop: Any, text: str, stream: bool) -> None:
    async with serving(saying("Hello world")) as server:
        answer = await chat(server, stop=stop, stream=stream)
        if stream:
            events = [event["choices"][0] for event in chunks(answer)]
            assert "".join(event["delta"].get("content", "") for event in events) == text
            assert [event["finish_reason"] for event in events][-1] == "stop"
        else:
            assert answer.json["choices"][0]["message"]["content"] == text
            assert answer.json["choices"][0]["finish_reason"] == "stop"


@pytest.mark.contract("2.3", "R3.43", "R3.52")
async def test_truncated_text_ends_by_length() -> None:
    async with serving(saying("Hello world")) as server:
        for name in ("max_tokens", "max_completion_tokens"):
            choice = (await chat(server, **{name: 1})).json["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")
        events = chunks(await chat(server, max_tokens=1, stream=True))
        assert [event["choices"] for event in events] == [
            [_choice({"role": "assistant", "content": ""})],
            [_choice({"content": "Hello"})],
            [_choice({}, "length")],
        ]


async def test_n_choices_have_seeds_of_their_own() -> None:
    """The fake model counts up from the seed, so each choice has a text of its own."""
    async with serving() as server:
        answer = await chat(server, n=3, seed=40, max_tokens=2, stream=False)
        choices = answer.json["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        decode = make_tokenizer().decode
        assert [c["message"]["content"] for c in choices] == [
            decode([40, 41]), decode([41, 42]), decode([42, 43]),
        ]  # fmt: skip
        assert answer.json["usage"]["completion_tokens"] == 6
        events = chunks(await chat(server, n=3, seed=40, max_tokens=2, stream=True))
        for index in range(3):
            deltas = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
            text = "".join(delta["delta"].get("content", "") for delta in deltas)
            assert text == choices[index]["message"]["content"]
            assert [delta["finish_reason"] for delta in deltas] == [None, None, None, "length"]


OTHER = "`messages[0]` has {}, and the model reads text only"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"temperature": -1}, "`temperature` must be >= 0.0"),
        ({"top_p": 1.5}, "`top_p` must be >= 0.0 and <= 1.0"),
        ({"max_tokens": 0}, "`max_tokens` must be strictly positive"),
        ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"presence_penalty": -2.5}, "`presence_penalty` must be >= -2.0 and <= 2.0"),
        ({"min_p": 2}, "`min_p` must be >= 0.0 and <= 1.0"),
        ({"n": 0}, "`n` must be > 0 and <= 8. Given: 0"),
        ({"n": 9}, "`n` must be > 0 and <= 8. Given: 9"),
        ({"logprobs": True, "top_logprobs": 21}, "`top_logprobs` must be >= 0 and <= 20. Given: 21"),
        ({"stop": ["a", ""]}, "`stop` cannot have an empty text"),
        ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"logit_bias": {"x": 1}}, "`logit_bias`: 'x' is no id of the model's 1000 tokens"),
        ({"logit_bias": {"1000": 1}}, "`logit_bias`: '1000' is no id of the model's 1000 tokens"),
        ({"logit_bias": {"9" * 5000: 1}}, f"`logit_bias`: '{'9' * 40}' is no id of the model's 1000 tokens"),
        ({"logit_bias": {"1": 101}}, "`logit_bias` must be >= -100 and <= 100. Given: 101 for 1"),
        ({"stop_token_ids": [1000]}, "`stop_token_ids`: the model has 1000 tokens, and no token 1000"),
        ({"allowed_token_ids": [1000]}, "`allowed_token_ids`: the model has 1000 tokens, and no token 1000"),
        (
            {"allowed_token_ids": [HELLO], "bad_words": ["Hello"]},
            "`allowed_token_ids` and `bad_words` leave nothing: no token that is allowed continues the text",
        ),
        ({"bad_words": ["a"] * 1001}, "`bad_words` supports up to 1000 words. Given: 1001"),
        (
            {"truncate_prompt_tokens": 64},
            "`truncate_prompt_tokens` must be -1, or > 0 and <= 63. Given: 64",
        ),
        ({"messages": []}, "`messages` cannot be empty"),
        (
            {"max_tokens": 2000},
            "This model's maximum context length is 64 tokens. `messages` tokens + `max_tokens` must be "
            "<= 64. Given: 18 `messages` tokens and 2000 `max_tokens`",
        ),
        (
            {"max_completion_tokens": 64},
            "This model's maximum context length is 64 tokens. `messages` tokens + `max_completion_tokens` "
            "must be <= 64. Given: 18 `messages` tokens and 64 `max_completion_tokens`",
        ),
        *(
            (
                {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]},
                OTHER.format(name),
            )
            for part, name in (
                ({"type": "image_url", "image_url": {"url": "http://a/b.png"}}, "an image"),
                ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "audio"),
                ({"type": "video_url", "video_url": {"url": "http://a/b.mp4"}}, "a video"),
                ({"type": "file", "file": {"file_id": "a"}}, "a file"),
            )
        ),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, OTHER.format("audio")),
        (
            {"tools": [{"function": {"name": "f"}}], "tool_choice": "required", "guided_regex": "a"},
            "a grammar and a `tool_choice` that requires a call cannot be combined",
        ),
        ({"top_logprobs": 1}, "`top_logprobs` needs `logprobs`"),
        ({"guided_regex": "a", "grammar": "b"}, "`grammar` and `guided_regex` cannot be combined"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "`continue_final_message` and `add_generation_prompt` exclude each other",
        ),
        ({"function_call": "auto"}, "`function_call` needs `functions`"),
        ({"functions": [], "tools": []}, "`functions` and `tools` cannot be combined"),
        ({"max_tokens": 4, "min_tokens": 5}, "`min_tokens` must be <= 4, the tokens that may be generated"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_impossible_requests_are_refused_with_a_true_status(
    body: dict[str, Any], message: str, stream: bool
) -> None:
    async with serving(limits=LIMITS) as server:
        answer = await chat(server, **body, stream=stream)
        text = f"Input validation error: {message}"
        assert (answer.status, answer.json["error"]["message"]) == (400, text)
        error = answer.json["error"]
        assert (answer.json["error_type"], error["type"]) == ("validation", "invalid_request_error")
        assert (await chat(server)).status == 200


async def test_neutral_values_that_tgi_refuses_are_accepted() -> None:
    async with serving(saying("Hello")) as server:
        neutral = {
            "top_p": 1,
            "top_k": -1,
            "stream_options": None,
            "stop": None,
            "logit_bias": {},
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "user": "bob",
            "reasoning_effort": "low",
            "response_format": {"type": "text"},
            "n": None,
        }
        answer = await chat(server, **neutral)
        assert answer.status == 200, answer.body


@pytest.mark.contract("2.3")
async def test_sampling_parameters_reach_the_rank() -> None:
    seen = {}

    def script(params: Any, draw: int) -> int:
        seen[draw] = params.sampling
        return EOS

    async with serving(script) as server:
        body = {
            "presence_penalty": 0.5,
            "frequency_penalty": -1.0,
            "repetition_penalty": 1.5,
            "min_p": 0.25,
            "top_k": 7,
            "top_p": 0.5,
            "temperature": 0.75,
            "seed": 5,
            "logit_bias": {"3": -100, "4": 7.5},
        }
        assert (await chat(server, **body)).status == 200
        params = seen[0]
        assert params.sample
        assert (params.presence_penalty, params.count_penalty, params.frequency_penalty) == (0.5, -1, 0)
        assert (params.repetition_penalty, params.min_p, params.top_k) == (1.5, 0.25, 7)
        assert (params.top_p, params.temperature, params.seed) == (0.5, 0.75, 5)
        for greedy in ({"temperature": 0}, {"top_p": 0}, {"top_p": 0, "top_k": 5, "temperature": 2}):
            await chat(server, **greedy)
            assert not seen[0].sample
            assert (seen[0].top_p, seen[0].top_k) == (1, 0)
        await chat(server)
        assert seen[0].sample
        assert seen[0].temperature == 1


async def test_ignore_eos_stop_tokens_and_min_tokens() -> None:
    async with serving(saying("Hello world")) as server:
        choice = (await chat(server, ignore_eos=True, max_tokens=9)).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello world", "length")
        choice = (await chat(server, stop_token_ids=[WORLD])).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")
        answer = await chat(server, stop="world", min_tokens=5, max_tokens=6)
        assert answer.json["choices"][0]["message"]["content"].startswith("Hello world")


@pytest.mark.contract("R3.59")
async def test_error_ends_a_stream_as_an_event() -> None:
    async with serving(step_seconds=0.01) as server:
        assert server.service.engine is not None
        scheduler = server.service.engine.scheduler

        def fail_later(_params: Any, draw: int) -> int:
            if draw == 3:
                scheduler.fail_all(GenerationFailed("boom"))
            return 5

        server.executor.script = fail_later
        events = chunks(await chat(server, stream=True))
        error = events[-1]
        assert error["error"]["message"] == "Request failed during generation: boom"
        assert (error["error"]["http_status_code"], error["error"]["type"]) == (424, "server_error")
        assert error["error_type"] == "generation"
        assert len(events) > 1


@pytest.mark.contract("C31", "C32")
async def test_parts_are_joined_and_images_are_refused() -> None:
    async with serving(saying("Hello")) as server:
        content: list[dict[str, Any]] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        body = {"messages": [USER, {"role": "user", "content": content}]}
        answer = await server.ask("POST", "/chat_tokenize", body)
        assert answer.json["templated_text"] == "<s>[user]Hello[user]ab[assistant]"
        content.append({"type": "image_url", "image_url": {"url": "http://x/y.png"}})
        text = "Input validation error: `messages[1]` has an image, and the model reads text only"
        answer = await server.ask("POST", "/chat_tokenize", body)
        assert (answer.status, answer.json["error"]) == (422, text)
        answer = await server.ask("POST", PATH, body)
        assert (answer.status, answer.json["error"]["message"]) == (400, text)


@pytest.mark.contract("R1.9", "3.8", "C20")
async def test_chat_tokenize_answers_prompt_and_tokens() -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/chat_tokenize", {"messages": [USER]})
        text = "<s>[user]Hello[assistant]"
        assert answer.json["templated_text"] == text
        pieces = answer.json["tokenize_response"]
        ids = make_tokenizer().encode(text, add_special_tokens=False)
        assert [piece["id"] for piece in pieces] == ids
        assert pieces[0] == {"id": 0, "text": "<s>", "start": 0, "stop": 3}
        assert "".join(piece["text"] for piece in pieces) == text
        assert "tgi_request_count" not in await server.metrics()  # nothing was generated


@pytest.mark.contract("4.4")
async def test_final_assistant_message_is_continued() -> None:
    async with serving() as server:
        messages = [USER, {"role": "assistant", "content": "It is "}]
        answer = await server.ask("POST", "/chat_tokenize", {"messages": messages})
        assert answer.json["templated_text"] == "<s>[user]Hello[assistant]It is"


@pytest.mark.contract("V34", "V35", "C8")
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "Template error: template not found"),
        ("{{ raise_exception('no roles') }}", "Template error: syntax error: no roles (in <string>:1)"),
        ("{% if %}", None),
    ],
)
async def test_unusable_template_fails_the_request(template: str | None, message: str | None) -> None:
    async with serving(saying("Hello"), template=template) as server:
        for stream in (False, True):
            answer = await chat(server, stream=stream)
            assert (answer.status, answer.json["error_type"]) == (400, "template_error")
            if message is not None:
                assert answer.json["error"]["message"] == message
        assert (await server.generate({})).status == 200


async def test_chat_template_kwargs_reach_the_template() -> None:
    async with serving(template=TEMPLATE + "{{ mood }}") as server:
        body = {"messages": [USER], "chat_template_kwargs": {"mood": "glad"}}
        answer = await server.ask("POST", "/chat_tokenize", body)
        assert answer.json["templated_text"].endswith("glad")


async def test_each_choice_takes_a_permit_until_the_answer_has_ended() -> None:
    limits = attrs.evolve(LIMITS, max_concurrent_requests=2)
    async with serving(saying("Hello"), limits=limits) as server:
        assert (await chat(server, n=2)).status == 200
        assert len(chunks(await chat(server, n=2, stream=True))) == 6
        assert server.service.in_flight == 0


@pytest.mark.parametrize(
    ("template", "role"), [(TEMPLATE, "system"), (TEMPLATE + "{# developer #}", "developer")]
)
async def test_role_developer_is_system_to_older_templates(template: str, role: str) -> None:
    async with serving(template=template) as server:
        messages = [{"role": "developer", "content": "Be brief."}, USER]
        answer = await server.ask("POST", "/chat_tokenize", {"messages": messages})
        assert answer.json["templated_text"] == f"<s>[{role}]Be brief.[user]Hello[assistant]"
