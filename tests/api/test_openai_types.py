"""How the bodies of OpenAI's API are understood."""

import json
from typing import Any

import pytest

from tgi.api.bodies import decode
from tgi.api.native_bodies import CompatGenerateRequest, DetokenizeRequest
from tgi.api.openai.messages import FunctionCall, ImageChunk, Message, TextChunk, ToolCall, Url
from tgi.api.openai.requests import ChatRequest, CompletionRequest
from tgi.api.openapi import ROUTES
from tgi.api.platforms import INSTANCES, GenerateVertexInstance, InferenceRequest, VertexRequest
from tgi.errors import ValidationError, WrongShape
from tgi.text.grammar import GrammarSpec

SAGEMAKER = next(route.body for route in ROUTES if route.path == "/invocations")


def chat(rest: str = "") -> ChatRequest:
    body = '{"messages":[{"role":"user","content":"x"}]' + rest + "}"
    request: ChatRequest = decode(body.encode(), ChatRequest)
    return request


def message(fields: dict[str, Any]) -> Message:
    body = {"messages": [fields]}
    request: ChatRequest = decode(json.dumps(body).encode(), ChatRequest)
    return request.messages[0]


CALL = {"id": "0", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_messages_are_read_with_all_their_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}
    parts = [{"type": "text", "text": "t"}, image]
    call = ToolCall(FunctionCall("f", "{}"), "0", "function")
    assert message({"role": "user", "content": parts, "name": "n"}) == Message(
        "user", [TextChunk("t"), ImageChunk(Url("u"))], "n"
    )
    for content in (None, "c"):
        read = message({"role": "assistant", "content": content, "tool_calls": [{**CALL, "index": 0}]})
        assert read == Message("assistant", content, tool_calls=[call])
    assert message({"role": "assistant", "content": "c", "tool_calls": None}) == Message("assistant", "c")
    read = message({"role": "tool", "content": "6", "tool_call_id": "0"})
    assert read == Message("tool", "6", tool_call_id="0")


def test_templates_get_the_fields_that_are_given() -> None:
    fields = {"role": "assistant", "content": "c", "tool_calls": [CALL], "reasoning": "r"}
    assert message({**fields, "name": None, "thinking": {"a": 1}}).to_template() == fields
    parts = [{"type": "text", "text": "t"}]
    assert message({"role": "user", "content": parts}).to_template() == {"role": "user", "content": parts}


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "function": {"name": "f", "arguments": {}}},
        {"id": "0", "function": {"name": "f", "arguments": {}}},
        {"id": None, "type": None, "function": {"name": "f", "parameters": {}}},
        {"function": {"name": "f"}},
        *({"function": {"name": "f", "arguments": nothing}} for nothing in (None, "", " ", "null")),
    ],
)
def test_incomplete_calls_are_kept(call: dict[str, Any]) -> None:
    read = message({"role": "assistant", "content": "", "tool_calls": [call, CALL]})
    (first, second) = read.to_template()["tool_calls"]
    assert (first["type"], first["function"]) == ("function", {"name": "f", "arguments": {}})
    assert second == CALL


def test_older_and_rarer_forms_of_messages_reach_the_template() -> None:
    for fields, expected in (
        ({"role": "assistant", "content": None, "refusal": "No."}, {"role": "assistant", "content": "No."}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "assistant", "tool_calls": [{**CALL, "id": None}]},
        ),
        (
            {"role": "function", "name": "f", "content": "6"},
            {"role": "tool", "name": "f", "content": "6"},
        ),
    ):
        assert message(fields).to_template() == expected


NULLABLE = (
    "frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata modalities n "
    "parallel_tool_calls prediction presence_penalty reasoning_effort response_format seed stop store "
    "stream_options temperature tool_choice tools top_logprobs top_p user"
).split()
COMPLETION_NULLABLE = "best_of echo logprobs n suffix stop seed max_tokens logit_bias user".split()


def test_null_means_that_a_field_is_not_given() -> None:
    """The fields are those of OpenAI's published schema."""
    assert chat("".join(f',"{name}":null' for name in NULLABLE)) == chat()
    body = {"prompt": "x"} | dict.fromkeys(COMPLETION_NULLABLE)
    assert decode(json.dumps(body).encode(), CompletionRequest).prompts == ["x"]


@pytest.mark.parametrize(
    "part", [{"type": "input_text", "text": "t"}, {"type": "thinking", "thinking": "t"}, {"text": "t"}]
)
def test_unknown_parts_of_content_are_refused_by_name(part: dict[str, Any]) -> None:
    with pytest.raises(WrongShape, match=r"\$\.messages\[0\]\.content\[0\]"):
        message({"role": "user", "content": [part]})


@pytest.mark.parametrize("fields", [{}, {"content": None}, {"content": None, "tool_calls": None}])
def test_a_message_of_the_assistant_may_be_empty(fields: dict[str, Any]) -> None:
    assert message({"role": "assistant", **fields}).content is None
    with pytest.raises(WrongShape, match=r"required field `content` - at `\$\.messages\[0\]`"):
        message({"role": "user", **fields})


def test_parts_of_a_message_of_another_shape_are_refused_by_name() -> None:
    with pytest.raises(WrongShape, match=r"\$\.messages\[0\]\.tool_calls\[0\]"):
        message({"role": "assistant", "content": "c", "tool_calls": [{"id": "0", "type": "function"}]})
    with pytest.raises(WrongShape, match=r"\$\.messages\[0\]\.content"):
        message({"role": "assistant", "content": 5, "tool_calls": [CALL]})


ANY_OBJECT = GrammarSpec("json", '{"type": "object"}')
SCHEMA = GrammarSpec("json", '{"a": 1}')


@pytest.mark.parametrize(
    ("written", "spec"),
    [
        ('{"type":"text"}', None),
        ('{"type":"json_object"}', ANY_OBJECT),
        ('{"type":"json_object","schema":null}', ANY_OBJECT),
        ('{"type":"json_object","schema":{}}', ANY_OBJECT),  # as llama.cpp reads it
        ('{"type":"json_object","json_schema":{"name":"n","schema":{"a":1}}}', SCHEMA),
        ('{"type":"json_object","value":{"a":1}}', SCHEMA),
        ('{"type":"json_object","schema":{"a":1}}', SCHEMA),
        ('{"type":"json","value":{"a":1}}', SCHEMA),
        ('{"value":{"a":1},"type":"json"}', SCHEMA),
        ('{"type":"regex","value":"a"}', GrammarSpec("regex", "a")),
        ('{"type":"json_schema","value":{"schema":{}}}', GrammarSpec("json", "{}")),
        ('{"type":"json_schema","schema":{"a":1}}', SCHEMA),
        ('{"json_schema":{"name":"n","schema":{"a":1},"strict":true},"type":"json_schema"}', SCHEMA),
    ],
)
def test_response_format_in_every_spelling(written: str, spec: GrammarSpec | None) -> None:
    read = chat(f',"response_format":{written}').response_format
    assert read is not None
    assert read.spec == spec


def test_a_response_format_of_null_is_none() -> None:
    assert chat(',"response_format":null').response_format is None


def test_a_response_format_without_schema_is_refused() -> None:
    with pytest.raises(WrongShape, match=r"required field `schema` - at `\$\.response_format\.json_schema`"):
        chat(',"response_format":{"type":"json_schema","json_schema":{"name":"a"}}')
    with pytest.raises(WrongShape, match=r"required field `json_schema` - at `\$\.response_format`"):
        chat(',"response_format":{"type":"json_schema"}')
    with pytest.raises(WrongShape, match=r"required field `value` - at `\$\.response_format`"):
        chat(',"response_format":{"type":"json"}')
    read = chat(',"response_format":{"type":"json_schema","json_schema":{"schema":[1]}}').response_format
    assert read is not None
    with pytest.raises(
        ValidationError, match="grammar is not valid: a schema must be an object or a boolean"
    ):
        _ = read.spec


@pytest.mark.contract("T2")
@pytest.mark.parametrize(
    ("written", "mode", "names"),
    [
        ('"auto"', "auto", None),
        ('"none"', "none", None),
        ('"required"', "required", None),
        ("null", "auto", None),
        ('"f"', "named", ["f"]),
        ('{"function":{"name":"f"}}', "named", ["f"]),
        ('{"type":"function","function":{"name":"f"}}', "named", ["f"]),
        (
            '{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":'
            '[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}]}}',
            "required",
            ["f", "g"],
        ),
    ],
)
def test_tool_choice(written: str, mode: str, names: list[str] | None) -> None:
    assert chat(f',"tool_choice":{written}').chosen_tools == (mode, names)


@pytest.mark.parametrize("written", ["{}", '{"type":"allowed_tools"}', '{"type":"custom"}', "5"])
def test_other_tool_choices_are_refused_by_name(written: str) -> None:
    with pytest.raises(WrongShape, match=r"\$\.tool_choice"):
        chat(f',"tool_choice":{written}')


def test_tools_may_lack_parameters_or_call_them_arguments() -> None:
    functions = ['{"name":"f"}', '{"name":"f","parameters":null}', '{"name":"f","arguments":{"a":1}}']
    tools = ",".join('{"type":"function","function":' + function + "}" for function in functions)
    read = chat(f',"tools":[{tools}]').tools
    assert read is not None
    assert [tool.function.parameters for tool in read] == [{}, {}, {"a": 1}]


def test_a_tool_is_a_function_with_a_name() -> None:
    for type_ in ("", '"type":null,', '"type":"function",'):
        read = chat(f',"tools":[{{{type_}"function":{{"name":"f"}}}}]').tools
        assert read is not None
        assert read[0].function.name == "f"
    for written, text in (
        (
            '{"type":"web_search"}',
            r"type 'web_search' are not supported, functions are - at `\$\.tools\[0\]`",
        ),
        ('{"type":"function"}', r"required field `function` - at `\$\.tools\[0\]`"),
        ('{"function":{"name":""}}', r"name of a function cannot be empty - at `\$\.tools\[0\]\.function`"),
    ):
        with pytest.raises(WrongShape, match=text):
            chat(f',"tools":[{written}]')


def test_other_fields_in_openais_spellings() -> None:
    assert chat(',"stop":"a"').stops == chat(',"stop":["a"]').stops == ["a"]
    assert chat(',"max_completion_tokens":6').max_tokens == 6
    assert chat(',"max_completion_tokens":6,"max_tokens":6').max_tokens == 6
    assert not chat(',"stream":null').stream
    assert chat(',"logit_bias":{"1":2}').logit_bias == {"1": 2.0}
    assert chat(',"logit_bias":[1.5]').logit_bias == [1.5]
    options = chat(
        ',"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":null}'
    ).stream_options
    assert options is not None
    assert (options.include_usage, options.continuous_usage_stats) == (True, None)


def test_seeds_are_numbers_of_64_bits_with_or_without_a_sign() -> None:
    for seed in (-(2**63), -1, 0, 2**64 - 1):
        assert chat(f',"seed":{seed}').seed == seed
    for seed in (-(2**63) - 1, 2**64):
        with pytest.raises(WrongShape, match="`seed`"):
            chat(f',"seed":{seed}')


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"a"', ["a"]),
        ('["a","b"]', ["a", "b"]),
        ("[1,2]", [[1, 2]]),
        ("[[1,2],[3]]", [[1, 2], [3]]),
        ("[[]]", [[]]),
    ],
)
def test_prompts_are_always_a_list(written: str, read: list[object]) -> None:
    assert decode(f'{{"prompt":{written}}}'.encode(), CompletionRequest).prompts == read


@pytest.mark.parametrize("written", ["[1.5]", "[-1]", '["a",1]', '[[1],"a"]', "{}"])
def test_prompts_of_another_shape_are_refused(written: str) -> None:
    with pytest.raises(WrongShape, match="prompt"):
        decode(f'{{"prompt":{written}}}'.encode(), CompletionRequest)


@pytest.mark.parametrize(("written", "read"), [("3", 3), ("true", 1), ("false", None), ("null", None)])
def test_logprobs_of_completions_may_be_a_boolean(written: str, read: int | None) -> None:
    body = f'{{"prompt":"a","logprobs":{written}}}'
    assert decode(body.encode(), CompletionRequest).logprobs == read


@pytest.mark.contract("R1.6")
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"inputs":"a","messages":[],"prompt":"b"}', CompatGenerateRequest),
        ('{"inputs":1,"messages":[],"prompt":"b"}', ChatRequest),
        ('{"messages":1,"prompt":"b"}', CompletionRequest),
    ],
)
def test_invocations_is_the_first_that_fits(body: str, kind: type) -> None:
    assert type(decode(body.encode(), *SAGEMAKER)) is kind


def test_instances_are_prompts_or_chats() -> None:
    body = b'{"instances":[{"inputs":"a"},{"messages":[],"seed":1}]}'
    first, second = (decode(bytes(raw), *INSTANCES) for raw in decode(body, VertexRequest).instances)
    assert first == GenerateVertexInstance("a")
    assert isinstance(second, ChatRequest)


def test_bodies_of_kserve_and_detokenize() -> None:
    data = {"name": "in", "shape": [1], "datatype": "BYTES", "data": [97]}
    body = {"id": "7", "inputs": [data], "outputs": [{"name": "out"}]}
    request = decode(json.dumps(body).encode(), InferenceRequest)
    assert (request.id, request.inputs[0].data, request.outputs[0].name) == ("7", [97], "out")
    assert request.parameters.do_sample
    with pytest.raises(WrongShape, match=r"Expected `int` <= 255 - at `\$\.inputs\[0\]\.data\[0\]`"):
        decode(json.dumps({**body, "inputs": [{**data, "data": [256]}]}).encode(), InferenceRequest)
    assert decode(b'{"tokens":[1,2]}', DetokenizeRequest).tokens == [1, 2]
