"""Answers to fields of vLLM, llama.cpp and OpenAI's older API, as those servers document them."""

import json
from typing import Any

import pytest

from tgi.limits import Limits
from tgi.testing.fake_executor import logprob

from .serving import BOS, EOS, TEMPLATE, Server, make_tokenizer, saying, serving
from .test_chat import PATH as CHAT
from .test_chat import USER, chunks

COMPLETIONS = "/v1/completions"
HELLO, WORLD = make_tokenizer().encode("Hello world", add_special_tokens=False)
PROMPT = make_tokenizer().encode("what is")
TURN = make_tokenizer().encode("<s>[user]Hello[assistant]", add_special_tokens=False)
OTHER = {"role": "assistant", "content": "So"}


async def choice_of(server: Server, path: str, **fields: Any) -> dict[str, Any]:
    """Return the choice of an answer, which is the same streamed and whole."""
    body = {"messages": [USER]} if path == CHAT else {"prompt": "what is"}
    answer = await server.ask("POST", path, {**body, "temperature": 0, **fields})
    assert answer.status == 200, answer.body
    whole: dict[str, Any] = answer.json["choices"][0]
    if "prompt_logprobs" not in fields:
        events = chunks(await server.ask("POST", path, {**body, "temperature": 0, "stream": True, **fields}))
        parts = [event["choices"][0] for event in events]
        texts = [part.get("text", part.get("delta", {}).get("content")) or "" for part in parts]
        assert "".join(texts) == (whole["text"] if path == COMPLETIONS else whole["message"]["content"] or "")
        assert parts[-1]["finish_reason"] == whole["finish_reason"]
        if "token_ids" in whole:
            assert [token for part in parts for token in part["token_ids"]] == whole["token_ids"]
    return whole


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


PATHS = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])


@PATHS
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"guided_choice": ["yes", 'no "or" so']}, {"yes", 'no "or" so'}),
        ({"structured_outputs": {"choice": ["a"]}}, {"a"}),
        ({"structured_outputs": {"regex": "[ab]"}, "response_format": {"type": "text"}}, {"a", "b"}),
        ({"structured_outputs": {"json": {"const": "42"}}}, {'"42"'}),
        ({"structured_outputs": {"json": '{"const": "42"}'}}, {'"42"'}),
        ({"structured_outputs": {"grammar": 'root ::= "a"{5,5}'}}, {"aaaaa"}),
        ({"guided_grammar": 'start: "a" B\nB: "b"'}, {"ab"}),
        ({"guided_json": {"enum": [1, 2]}}, {"1", "2"}),
        ({"guided_regex": "x{3}"}, {"xxx"}),
        ({"grammar": 'root ::= "a"{5,5}'}, {"aaaaa"}),
        ({"grammar": {"type": "regex", "value": "y{3}"}}, {"yyy"}),
        ({"grammar": {"type": "json", "value": {"const": 5}}}, {"5"}),
        ({"json_schema": {"const": "42"}}, {'"42"'}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}}, {"7"}),
    ],
)
async def test_a_format_under_every_name(path: str, fields: dict[str, Any], text: set[str]) -> None:
    async with serving(saying("Hello world")) as server:
        choice = await choice_of(server, path, **fields)
        assert text_of(choice) in text
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}<think>", "<think></think>{{ messages[0].content }}"]
)
async def test_a_grammar_holds_behind_thoughts(template: str) -> None:
    async with serving(saying("Hm</think>Hello"), template=template) as server:
        body = {"messages": [USER], "grammar": 'root ::= "a"{3}', "max_tokens": 40}
        message = (await server.ask("POST", CHAT, body)).json["choices"][0]["message"]
        assert message["content"] == "aaa"


@PATHS
@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "`structured_outputs` must have one of"),
        ({"regex": "a", "choice": ["b"]}, "`structured_outputs` must have one of"),
        ({"json_object": False}, "`structured_outputs` must have one of"),
        (
            {"regex": "a", "whitespace_pattern": " "},
            "outputs.whitespace_pattern` is not supported",
        ),
        ({"structural_tag": "{}"}, "outputs.structural_tag` is not supported"),
        ({"choice": []}, "the list of choices is empty"),
        ({"grammar": "root ::= @"}, "line 1 of the grammar: '@' makes no sense"),
        ({"json": [1]}, "a schema must be an object or a boolean"),
    ],
)
async def test_structured_outputs_that_make_no_sense(path: str, outputs: dict[str, Any], words: str) -> None:
    async with serving() as server:
        body = {"messages": [USER], "prompt": "a", "structured_outputs": outputs}
        answer = await server.ask("POST", path, body)
        assert answer.status == 400
        assert words in answer.json["error"]["message"]


@PATHS
async def test_tokens_that_alone_may_come_and_words_that_may_not(path: str) -> None:
    async with serving(saying("Hello world")) as server:
        fields: dict[str, Any] = {"return_token_ids": True, "max_tokens": 4}
        choice = await choice_of(server, path, allowed_token_ids=[40, WORLD], **fields)
        assert choice["token_ids"] == [40, WORLD, 40, 40]
        choice = await choice_of(server, path, allowed_token_ids=[HELLO, EOS], **fields)
        assert choice["token_ids"] == [HELLO, EOS, EOS][:2], "an end token that is allowed ends the text"
        choice = await choice_of(server, path, bad_words=["world"], **fields)
        assert choice["token_ids"][0] == HELLO
        assert WORLD not in choice["token_ids"]
        choice = await choice_of(server, path, bad_words=["world"], min_tokens=4, ignore_eos=True, **fields)
        assert len(choice["token_ids"]) == 4


@PATHS
async def test_what_ends_a_text_may_stay_in_it(path: str) -> None:
    async with serving(saying("Hello world")) as server:
        for fields, text in [
            ({"stop": ["wor"]}, "Hello wor"),
            ({"stop": ["lo w", "world"]}, "Hello w"),
            ({"stop_token_ids": [WORLD]}, "Hello world"),
            ({}, "Hello world"),
            ({"skip_special_tokens": False}, "Hello world</s>"),
        ]:
            choice = await choice_of(server, path, include_stop_str_in_output=True, **fields)
            assert (text_of(choice), choice["finish_reason"]) == (text, "stop")
        choice = await choice_of(server, path, skip_special_tokens=False)
        assert text_of(choice) == "Hello world"
        choice = await choice_of(server, path, skip_special_tokens=False, ignore_eos=True, max_tokens=4)
        assert text_of(choice) == "Hello world</s></s>"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, PROMPT),
        ({"add_special_tokens": False}, PROMPT[1:]),
        ({"truncate_prompt_tokens": 3}, [BOS, *PROMPT[-2:]]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, PROMPT[:3]),
        ({"truncate_prompt_tokens": -1}, PROMPT),
        ({"truncate_prompt_tokens": 3, "prompt": PROMPT}, PROMPT[-3:]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right", "prompt": PROMPT}, PROMPT[:3]),
    ],
)
async def test_tokens_of_a_prompt(fields: dict[str, Any], expected: list[int]) -> None:
    async with serving(saying("Hello")) as server:
        choice = await choice_of(server, COMPLETIONS, return_token_ids=True, **fields)
        assert choice["prompt_token_ids"] == expected


async def test_prompts_too_long_are_cut_before_they_are_refused() -> None:
    async with serving(saying("Hello")) as server:
        long = {"prompt": "Hello " * 100}
        answer = await server.ask("POST", COMPLETIONS, long)
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
        for side in ("left", "right"):
            fields = {"truncate_prompt_tokens": 20, "truncation_side": side, "max_tokens": 1}
            answer = await server.ask("POST", COMPLETIONS, {**long, **fields})
            assert answer.json["usage"]["prompt_tokens"] == 20
        for max_tokens in (None, 1, 30):  # of 64 tokens in all, of which 63 may be the prompt's
            fields = {"truncate_prompt_tokens": -1, "max_tokens": max_tokens}
            answer = await server.ask("POST", COMPLETIONS, {**long, **fields})
            assert answer.json["usage"]["prompt_tokens"] == 64 - (max_tokens or 1)


async def test_token_ids_and_text_of_a_conversation() -> None:
    async with serving(saying("Hello")) as server:
        body = {"messages": [USER], "return_token_ids": True, "return_prompt_text": True}
        whole = (await server.ask("POST", CHAT, body)).json
        assert whole["prompt_token_ids"] == TURN
        assert whole["prompt_text"] == "<s>[user]Hello[assistant]"
        assert whole["choices"][0]["token_ids"] == [HELLO, EOS]
        events = chunks(await server.ask("POST", CHAT, {**body, "stream": True}))
        assert [event.get("prompt_token_ids") for event in events] == [TURN, *[None] * (len(events) - 1)]
        assert [event["choices"][0]["token_ids"] for event in events] == [[], [HELLO], [EOS]]


@PATHS
async def test_log_probabilities_of_a_prompt(path: str) -> None:
    tokens = TURN if path == CHAT else PROMPT
    async with serving(saying("Hello")) as server:
        for top in (0, 2):
            body = {"messages": [USER], "prompt": "what is", "prompt_logprobs": top}
            answer = (await server.ask("POST", path, body)).json
            tables = answer["prompt_logprobs"] if path == CHAT else answer["choices"][0]["prompt_logprobs"]
            assert tables[0] is None
            for token, table in zip(tokens[1:], tables[1:], strict=True):
                # The executor says that the ids behind a token are the next most likely ones.
                ranks = [1, 2] if top else [None]
                assert table == {
                    str(token + place): {
                        "logprob": logprob(token) - place,
                        "rank": rank,
                        "decoded_token": make_tokenizer().decode_alone(token + place),
                    }
                    for place, rank in enumerate(ranks)
                }
        answer = await server.ask("POST", path, {**body, "prompt_logprobs": 21})
        assert (answer.status, "`prompt_logprobs` must be >= 0 and <= 20" in str(answer.json)) == (400, True)


async def test_log_probabilities_beside_an_echo() -> None:
    async with serving(saying("Hello")) as server:
        fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 1}
        choice = await choice_of(server, COMPLETIONS, **fields)
        assert [len(table) for table in choice["logprobs"]["top_logprobs"][1:]] == [1] * len(PROMPT)
        assert [len(table) for table in choice["prompt_logprobs"][1:]] == [3] * (len(PROMPT) - 1)


async def test_tokens_may_be_named_by_id() -> None:
    names = [f"token_id:{HELLO}", f"token_id:{HELLO + 1}"]
    async with serving(saying("Hello")) as server:
        fields = {"return_tokens_as_token_ids": True, "max_tokens": 1}
        choice = await choice_of(server, CHAT, logprobs=True, top_logprobs=2, **fields)
        (entry,) = choice["logprobs"]["content"]
        assert (entry["token"], entry["bytes"]) == (names[0], list(b"Hello"))
        assert [top["token"] for top in entry["top_logprobs"]] == names
        columns = (await choice_of(server, COMPLETIONS, logprobs=2, echo=True, **fields))["logprobs"]
        assert columns["tokens"] == [f"token_id:{token}" for token in [*PROMPT, HELLO]]
        assert list(columns["top_logprobs"][-1]) == names


HEAD = "<s>[user]Hello.[assistant]So"


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, HEAD),
        ({"continue_final_message": True}, HEAD),
        ({"continue_final_message": True, "add_generation_prompt": False}, HEAD),
        ({"continue_final_message": False}, HEAD + ".[assistant]"),
        ({"add_generation_prompt": True}, HEAD + ".[assistant]"),
        ({"add_generation_prompt": False}, HEAD + "."),
        ({"add_generation_prompt": False, "continue_final_message": False}, HEAD + "."),
        ({"messages": [USER], "continue_final_message": True}, "<s>[user]Hello"),
        ({"messages": [USER], "add_generation_prompt": False}, "<s>[user]Hello."),
    ],
)
async def test_where_a_prompt_ends(fields: dict[str, Any], prompt: str) -> None:
    template = TEMPLATE.replace("{% endfor %}", ".{% endfor %}")
    async with serving(template=template) as server:
        answer = await server.ask("POST", "/chat_tokenize", {"messages": [USER, OTHER], **fields})
        assert answer.json["templated_text"] == prompt


async def test_a_last_message_that_is_not_there_cannot_be_continued() -> None:
    async with serving(template="{{ messages[0].content }}") as server:
        body = {"messages": [USER, OTHER], "continue_final_message": True}
        answer = await server.ask("POST", CHAT, body)
        assert answer.status == 400
        assert answer.json["error"]["message"] == "Template error: the last message cannot be continued"


async def test_an_answer_may_begin_with_the_message_that_it_continues() -> None:
    async with serving(saying("Hello")) as server:
        for messages, text in [
            ([USER, OTHER], "SoHello"),
            ([USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}] * 2}], "aaHello"),
            ([USER], "Hello"),
        ]:
            assert text_of(await choice_of(server, CHAT, messages=messages, echo=True)) == text


FUNCTION = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]},
}


@pytest.mark.parametrize(
    ("chosen", "said", "called"),
    [
        ({"name": "f"}, "x", True),
        (None, '{"name": "f", "parameters": {"a": 1}}', True),
        ("auto", "Hello", False),
        ("none", "Hello", False),
    ],
)
async def test_older_functions(chosen: Any, said: str, called: bool) -> None:
    limits = Limits(max_input_tokens=999, max_total_tokens=1200)
    async with serving(saying(said), limits=limits) as server:
        body = {"messages": [USER], "functions": [FUNCTION], "function_call": chosen, "temperature": 0}
        choice = (await server.ask("POST", CHAT, body)).json["choices"][0]
        events = chunks(await server.ask("POST", CHAT, {**body, "stream": True}))
        deltas = [event["choices"][0]["delta"] for event in events]
        assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
        assert "tool_calls" not in choice["message"]
        assert not any("tool_calls" in delta for delta in deltas)
        if not called:
            assert choice["finish_reason"] == "stop"
            assert choice["message"] == {"role": "assistant", "content": said}
            return
        assert choice["finish_reason"] == "function_call"
        call = choice["message"]["function_call"]
        assert (call["name"], json.loads(call["arguments"])) == ("f", {"a": 1})
        pieces = [delta["function_call"] for delta in deltas if "function_call" in delta]
        assert [piece["name"] for piece in pieces if "name" in piece] == ["f"]
        assert "".join(piece["arguments"] for piece in pieces) == call["arguments"]


async def test_other_names_of_limits() -> None:
    async with serving(saying("Hello world")) as server:
        choice = await choice_of(server, COMPLETIONS, max_completion_tokens=1)
        assert (text_of(choice), choice["finish_reason"]) == ("Hello", "length")
        answer = await server.ask(
            "POST", COMPLETIONS, {"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}
        )
        assert "`max_tokens` and `max_completion_tokens` differ" in answer.json["error"]["message"]


async def test_native_routes_go_on_after_the_end_and_stop_at_chosen_tokens() -> None:
    async with serving(saying("Hello world")) as server:
        for parameters, text, reason in [
            ({"ignore_eos": True, "max_new_tokens": 5}, "Hello world", "length"),
            ({"stop_token_ids": [WORLD]}, "Hello", "eos_token"),
            ({"min_tokens": 4, "max_new_tokens": 6, "stop": ["world"]}, "Hello world", None),
        ]:
            answer = await server.generate({"details": True, **parameters})
            assert answer.json["generated_text"].startswith(text)
            assert reason in (None, answer.json["details"]["finish_reason"])
            assert answer.json["details"]["generated_tokens"] >= (5 if reason != "eos_token" else 2)
