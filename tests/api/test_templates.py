"""Templates as a client sees them: tgi-behaviour 4.1 to 4.3, 12.4 and 12.5.

TGI renders with minijinja, this server as transformers does; what comes out otherwise than in 12.4 says so.
"""

import json
from typing import Any

import pytest

from .serving import TEMPLATE, Answer, serving

USER = {"role": "user", "content": "Hello"}
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


async def answer_of(path: str, template: str | None, messages: Any = (USER,), **body: Any) -> Answer:
    async with serving(template=template) as server:
        return await server.ask("POST", path, {"messages": list(messages), **body})


async def rendered(template: str, messages: Any = (USER,), **body: Any) -> str:
    answer = await answer_of("/chat_tokenize", template, messages, **body)
    assert answer.status == 200, answer.body
    return str(answer.json["templated_text"])


async def error_of(template: str, messages: Any = (USER,)) -> str:
    answer = await answer_of("/v1/chat/completions", template, messages)
    assert (answer.status, answer.json["error_type"]) == (400, "template_error")
    return str(answer.json["error"]["message"]).removeprefix("Template error: ")


@pytest.mark.contract("C10", "C11", "C12", "C15", "12.4")
@pytest.mark.parametrize(
    ("template", "variables", "text"),
    [
        ("a\n\n", {}, "a\n"),
        ("{{ x|tojson(indent=4) }}", {"x": {"b": 1}}, '{\n    "b": 1\n}'),
        ("{{ nope }}", {}, ""),
        ("{% for i in [1,2,3] %}{% if i==2 %}{% break %}{% endif %}{{i}}{% endfor %}", {}, "1"),
        ("{% for i in [1,2,3] %}{% if i==2 %}{% continue %}{% endif %}{{i}}{% endfor %}", {}, "13"),
        ("{{ '<&>' }}", {}, "<&>"),
    ],
)
async def test_rendered_as_in_tgi(template: str, variables: dict[str, Any], text: str) -> None:
    assert await rendered(template, chat_template_kwargs=variables) == text


@pytest.mark.parametrize(
    ("template", "variables", "text"),
    [
        # C11; TGI: "\n  x\n"
        ("{% if true %}\n  x\n{% endif %}\n", {}, "  x\n"),
        ("a\n  {% if true %}x{% endif %}", {}, "a\nx"),
        # C13; TGI: none|true|[1, "a"]
        ("{{ none }}|{{ true }}|{{ [1,'a'] }}", {}, "None|True|[1, 'a']"),
        # C15; TGI: {"a":"\u003c\u0027\u0026\u003eé"}, with the keys sorted
        ("{{ x|tojson }}", {"x": {"b": "<'&>é", "a": 1}}, '{"b": "<\'&>é", "a": 1}'),
    ],
)
async def test_rendered_as_in_transformers(template: str, variables: dict[str, Any], text: str) -> None:
    assert await rendered(template, chat_template_kwargs=variables) == text


@pytest.mark.contract("V35", "C12", "C14", "C35", "12.4")
@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{{ nope.x }}", [USER], "undefined value (in <string>:1)"),
        ("{{ messages[1]['role'] }}", [USER], "undefined value (in <string>:1)"),
        ("{{ raise_exception('M') }}", [USER], "syntax error: M (in <string>:1)"),
    ],
)
async def test_template_errors_have_tgis_texts(template: str, messages: list[Any], message: str) -> None:
    assert await error_of(template, messages) == message


async def test_invalid_operation_has_pythons_detail() -> None:
    """The detail in TGI is: tried to use + operator on unsupported types string and none."""
    message = await error_of("{{ 'a' + none }}")
    assert message == 'invalid operation: can only concatenate str (not "NoneType") to str (in <string>:1)'


async def test_strftime_has_pythons_codes() -> None:
    """%f is microseconds in Python and nanoseconds in TGI."""
    assert len(await rendered("{{ strftime_now('%f') }}")) == 6


@pytest.mark.contract("C16")
async def test_strings_have_pythons_methods() -> None:
    """minijinja's `get` takes one argument, and there is no removeprefix."""
    assert await rendered("{{ {'a': 1}.get('b', 2) }}{{ 'abc'.removeprefix('a') }}") == "2bc"
    methods = "{{ ' aB '.strip().upper().lower().title() }}{{ 'a,b'.split(',')[1] }}{{ [1, 1].count(1) }}"
    assert (
        await rendered(methods + "{% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}") == "Abb2x1"
    )


@pytest.mark.contract("C17")
@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'][0]['text'] }}",  # the only spelling that TGI knows
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
    ],
)
async def test_templates_for_parts_get_parts(template: str) -> None:
    assert await rendered(template) == "Hello"


@pytest.mark.contract("C17")
async def test_expressions_that_tgi_rewrites_work() -> None:
    template = "{% for m in messages[::-1] %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert await rendered(template, [USER, {"role": "user", "content": "You"}]) == "YouHello"
    assert await rendered(template.replace("{% gen", "{%- gen"), [USER]) == "Hello"


@pytest.mark.contract("C18")
async def test_variables_of_templates() -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ messages | length }}{{ tools }}"
    assert await rendered(template) == "<s></s>True1None"


async def test_name_of_a_message_reaches_the_template() -> None:
    template = "{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}"
    assert await rendered(template, [{**USER, "name": "Al"}]) == "Al: Hello"
    assert await rendered(template) == ": Hello"


async def test_id_of_the_answered_call_reaches_the_template() -> None:
    messages = [USER, {"role": "tool", "content": "21", "tool_call_id": "c1"}]
    assert (
        await rendered("{% for m in messages %}{{ m.tool_call_id }}{{ m.content }}{% endfor %}", messages)
        == "Helloc121"
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
async def test_earlier_thoughts_reach_the_template_under_every_name(name: str) -> None:
    answer = {"role": "assistant", "content": "4", name: "2 and 2"}
    for read in ("reasoning_content", "reasoning", "thinking"):
        template = f"{{% for m in messages %}}({{{{ m.{read} }}}}){{{{ m.content }}}}{{% endfor %}}"
        assert await rendered(template, [answer, USER]) == "(2 and 2)4()Hello"
        assert await rendered(template, [answer | {name: ["no text"]}, USER]) == "()4()Hello"


@pytest.mark.contract("C35")
async def test_an_empty_conversation_is_refused() -> None:
    for path, status in (("/chat_tokenize", 422), ("/v1/chat/completions", 400)):
        answer = await answer_of(path, TEMPLATE, [])
        assert answer.status == status
        assert b"`messages` cannot be empty" in answer.body


def calls(arguments: Any) -> dict[str, Any]:
    return {"id": "0", "type": "function", "function": {"name": "f", "arguments": arguments}}


CALL = '{"name": "f", "parameters": {"a": 1}}'


@pytest.mark.contract("12.5")
@pytest.mark.parametrize(
    ("message", "text"),
    [
        # C33; TGI: the whole list as JSON, and its arguments as JSON text within it, once or twice
        ({"role": "assistant", "tool_calls": [calls({"a": 1})]}, f"<assistant>{CALL}"),
        ({"role": "assistant", "tool_calls": [calls('{"a": 1}')]}, f"<assistant>{CALL}"),
        # C30; TGI: the content alone
        ({"role": "assistant", "content": "hi", "tool_calls": [calls({"a": 1})]}, f"<assistant>hi\n{CALL}"),
        # as in TGI
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "text", "text": "b"},
                ],
            },
            "<user>ab",
        ),
    ],
)
async def test_templates_see_messages_without_nulls(message: dict[str, Any], text: str) -> None:
    assert await rendered(PLAIN, [message, USER]) == f"{text}<user>Hello"


async def test_templates_see_tools_as_objects() -> None:
    """TGI gives the parameters as JSON text under `arguments`."""
    parameters = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
    function = {"name": "f", "description": "d", "parameters": parameters}
    tools = [{"type": "function", "function": function, "strict": True}]
    text = await rendered("{{ tools | tojson if tools else '' }}", tools=tools)
    assert text == json.dumps([{"type": "function", "function": function}])


@pytest.mark.parametrize("arguments", ["{bad", "[1]", '"a"', 5])
async def test_arguments_that_a_template_cannot_print_are_printed_as_text(arguments: Any) -> None:
    """As of an answer that was cut; a template that looks into arguments fails."""
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }}EACH{% endfor %}"
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + calls + "{% endfor %}"
    each = template.replace(
        "EACH", "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    good = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [good, call]}, USER]
    whole = template.replace("EACH", "{{ c.function.arguments | tojson }}")
    for one in (each, whole):
        text = await rendered(one, messages)
        assert (
            f'{{"name": "f", "parameters": {{"a": 1}}}}\n{{"name": "f", "parameters": {arguments}}}' in text
        )
