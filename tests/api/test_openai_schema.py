import json

import pytest

from tgi.api.json_body import decode_body
from tgi.api.openai_schema import (
    ChatRequest,
    CompletionRequest,
    ContentPart,
    DetokenizeRequest,
    InferenceRequest,
    Message,
    SagemakerRequest,
    ToolChoice,
    VertexGenerate,
    VertexRequest,
)
from tgi.api.schema import CompatGenerateRequest, Grammar, JsonSchema
from tgi.errors import WrongShape


def chat(rest: str) -> ChatRequest:
    return decode_body(ChatRequest, ('{"messages":[{"role":"user","content":"x"}]' + rest + "}").encode())


def test_messages_are_read_with_all_their_parts() -> None:
    call = {"id": "0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "t"}, image], "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "assistant", "content": "c", "tool_calls": [{**call, "index": 0}]},
            {"role": "assistant", "content": "c", "tool_calls": None},
            {"role": "tool", "content": "6", "tool_call_id": "0"},
        ]
    }
    assert decode_body(ChatRequest, json.dumps(body).encode()).messages == [
        Message("user", [ContentPart("text", text="t"), ContentPart("image_url", url="u")], "n"),
        Message("assistant", None, tool_calls=[call]),
        Message("assistant", "c", tool_calls=[call]),
        Message("assistant", "c"),
        Message("tool", "6", tool_call_id="0"),
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"type":"text"}', None),
        ("null", None),
        ('{"type":"json_object"}', Grammar("json", {"type": "object"})),
        ('{"type":"json_object","value":{"a":1}}', Grammar("json_object", {"a": 1})),
        ('{"type":"json_object","schema":{"a":1}}', Grammar("json", {"a": 1})),
        ('{"type":"json","value":{"a":1}}', Grammar("json", {"a": 1})),
        ('{"value":{"a":1},"type":"json"}', Grammar("json", {"a": 1})),
        ('{"type":"regex","value":"a"}', Grammar("regex", "a")),
        ('{"type":"json_schema","value":{"schema":{}}}', Grammar("json_schema", JsonSchema({}))),
        (
            '{"json_schema":{"name":"n","schema":{"a":1},"strict":true},"type":"json_schema"}',
            Grammar("json_schema", JsonSchema({"a": 1}, "n")),
        ),
    ],
)
def test_response_format_in_every_spelling(written: str, read: Grammar | None) -> None:
    assert chat(f',"response_format":{written}').response_format == read


def test_a_response_format_without_schema_is_refused() -> None:
    with pytest.raises(WrongShape, match=r"response_format.json_schema: missing field `schema` at line 1"):
        chat(',"response_format":{"type":"json_schema","json_schema":{"name":"a"}}')
    with pytest.raises(WrongShape, match=r"response_format: missing field `value` at line 1"):
        chat(',"response_format":{"type":"json"}')


@pytest.mark.contract("T2")
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"auto"', ToolChoice("auto")),
        ('"none"', ToolChoice("none")),
        ('"required"', ToolChoice("required")),
        ('"f"', ToolChoice("named", "f")),
        ('{"type":"function","function":{"name":"f"}}', ToolChoice("named", "f")),
        ("null", None),
    ],
)
def test_tool_choice(written: str, read: ToolChoice | None) -> None:
    assert chat(f',"tool_choice":{written}').tool_choice == read


def test_tools_may_lack_parameters_or_call_them_arguments() -> None:
    functions = ['{"name":"f"}', '{"name":"f","parameters":null}', '{"name":"f","arguments":{"a":1}}']
    tools = ",".join('{"type":"function","function":' + function + "}" for function in functions)
    read = chat(f',"tools":[{tools}]').tools
    assert read is not None
    assert [tool.function.parameters for tool in read] == [{}, {}, {"a": 1}]


def test_openais_spellings_of_the_rest() -> None:
    assert chat(',"stop":"a"').stop == chat(',"stop":["a"]').stop == ["a"]
    assert chat(',"max_completion_tokens":6').max_tokens == 6
    assert chat(',"stream":null').stream is False
    assert chat(',"logit_bias":{"1":2}').logit_bias == {"1": 2.0}
    assert chat(',"logit_bias":[1.5]').logit_bias is None
    options = chat(',"stream_options":{"include_usage":true,"continuous_usage_stats":null}').stream_options
    assert options is not None
    assert (options.include_usage, options.continuous_usage_stats) == (True, False)


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
    assert decode_body(CompletionRequest, f'{{"prompt":{written}}}'.encode()).prompt == read


@pytest.mark.parametrize("written", ["[1.5]", "[-1]", '["a",1]', '[[1],"a"]', "{}"])
def test_prompts_of_another_shape_are_refused(written: str) -> None:
    with pytest.raises(WrongShape, match="PromptDeserializer"):
        decode_body(CompletionRequest, f'{{"prompt":{written}}}'.encode())


@pytest.mark.parametrize(("written", "read"), [("3", 3), ("true", 1), ("false", None), ("null", None)])
def test_logprobs_of_completions_may_be_a_boolean(written: str, read: int | None) -> None:
    body = f'{{"prompt":"a","logprobs":{written}}}'
    assert decode_body(CompletionRequest, body.encode()).logprobs == read


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
    assert type(decode_body(SagemakerRequest, body.encode()).body) is kind


def test_instances_are_prompts_or_chats() -> None:
    first, second = decode_body(
        VertexRequest, b'{"instances":[{"inputs":"a"},{"messages":[],"seed":1}]}'
    ).instances
    assert first == VertexGenerate("a")
    assert isinstance(second, ChatRequest)


def test_the_bodies_of_kserve_and_detokenize() -> None:
    data = {"name": "in", "shape": [1], "datatype": "BYTES", "data": [97]}
    body = {"id": "7", "inputs": [data], "outputs": [{"name": "out"}]}
    request = decode_body(InferenceRequest, json.dumps(body).encode())
    assert (request.id, request.inputs[0].data, request.outputs[0].name) == ("7", [97], "out")
    assert request.parameters.do_sample
    with pytest.raises(WrongShape, match=r"inputs\[0\].data\[0\]: invalid value: integer `256`, expected u8"):
        decode_body(InferenceRequest, json.dumps({**body, "inputs": [{**data, "data": [256]}]}).encode())
    assert decode_body(DetokenizeRequest, b'{"tokens":[1,2]}').tokens == [1, 2]
