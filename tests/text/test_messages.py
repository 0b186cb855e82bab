"""Messages and tools for chat templates (tgi-behaviour 4.3, T6 to T8, 12.5), with C33, C34 and T7 mended."""

import json
from collections.abc import Sequence as Items
from typing import Any

import pytest

from tgi.text.answer_format import AnswerFormat
from tgi.text.chat_template import ChatTemplates
from tgi.text.messages import MAY_ANSWER, TOOL_PROMPT, prepare_messages

from .chat_templates import TEMPLATES
from .test_tools import TOKENIZERS
from .tool_templates import TOOL_TEMPLATES

ALL = TEMPLATES | TOOL_TEMPLATES
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
USER = {"role": "user", "content": "How warm is it?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Now", "parameters": PARAMETERS, "strict": None},
}
SHOWN = {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": PARAMETERS}}
CALL = {
    "id": "call_x",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_x", "content": "21 °C"}


def prepared(
    template: str, messages: list[dict[str, Any]], tools: Items[dict[str, Any]] = (), **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    templates = ChatTemplates({"default": template}, {"bos_token": "<s>", "eos_token": "</s>"})
    style = AnswerFormat.of(templates, TOKENIZERS[False], bool(tools))
    return prepare_messages(messages, tools, templates, style, **options)


def rendered(
    template: str, messages: list[dict[str, Any]], tools: Items[dict[str, Any]] = (), **options: Any
) -> str:
    templates = ChatTemplates({"default": template}, {"bos_token": "<s>", "eos_token": "</s>"})
    return templates.render(*prepared(template, messages, tools, **options))


@pytest.mark.contract("C32", "12.5")
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": " b"}], "a b"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": ""}, {"type": "text", "text": "b"}], "ab"),
        ([], ""),
    ],
)
def test_content_parts_are_joined(content: Any, text: str) -> None:
    assert prepared(PLAIN, [{"role": "user", "content": content}]) == (
        [{"role": "user", "content": text}],
        None,
    )


PARTS = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]
OWN_WAY = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{{ m.content | map(attribute='text') | join('SEP') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("separator", ["\n", " ", "\n\n", ""])
def test_a_template_joins_parts_in_its_own_way(separator: str) -> None:
    template = OWN_WAY.replace("SEP", separator.replace("\n", "\\n"))
    for role in ("system", "user", "assistant"):
        text = rendered(template, [{"role": "user", "content": "Hi"}, {"role": role, "content": PARTS}])
        assert f"<{role}>One{separator}Two" in text
    messages = [{"role": "user", "content": PARTS}]
    assert rendered(template, messages, [TOOL]).startswith("<user>OneTwo\n---\n")
    only_users = template.replace("m.content is string", "m.content is string or m.role != 'user'")
    system = {"role": "system", "content": PARTS}
    assert rendered(only_users, [system, *messages]) == f"<system>OneTwo<user>One{separator}Two"


def test_template_for_parts_gets_parts() -> None:
    messages = [USER, {"role": "assistant", "content": [{"type": "text", "text": "Warm."}]}]
    assert rendered(TEMPLATES["smolvlm-parts"], messages).endswith("Assistant: Warm.")
    assert "User: How warm" in rendered(TEMPLATES["smolvlm-parts"], messages)


def test_messages_are_left_as_they_were() -> None:
    messages = [USER, CALLS, RESULT]
    before = json.dumps(messages)
    for template in (PLAIN, TEMPLATES["qwen3"], TEMPLATES["mistral-v3"], TEMPLATES["gemma"]):
        prepared(template, messages, [TOOL])
    assert json.dumps(messages) == before


@pytest.mark.contract("T8")
def test_tools_are_explained_to_a_template_that_knows_none() -> None:
    (message,), tools = prepared(PLAIN, [USER], [TOOL], required=True)
    assert tools is None
    text = json.dumps([SHOWN], separators=(",", ":"))
    assert message["content"] == f"How warm is it?\n---\n{text}\n{TOOL_PROMPT}"
    assert TOOL_PROMPT == (
        "\nGiven the functions available, please respond with a JSON for a function call with its proper "
        "arguments that best answers the given prompt. Respond in the format {name: function name, "
        "parameters: dictionary of argument name and its value}.Do not use variables.\n"
    )


def test_prompt_allows_text_unless_a_call_is_required() -> None:
    (message,), _ = prepared(PLAIN, [USER], [TOOL])
    assert message["content"].endswith(TOOL_PROMPT + MAY_ANSWER)


@pytest.mark.contract("T6")
def test_client_tool_prompt_replaces_the_default() -> None:
    (message,), _ = prepared(PLAIN, [USER], [TOOL], tool_prompt="Use them.")
    assert message["content"].endswith("}]\nUse them.")
    (message,), tools = prepared(TEMPLATES["qwen3"], [USER], [TOOL], tool_prompt="Use them.")
    assert message["content"] == "How warm is it?\n---\nUse them."
    assert tools == [SHOWN]


def test_no_prompt_for_a_template_that_teaches_its_format() -> None:
    assert prepared(TEMPLATES["qwen3"], [USER], [TOOL]) == ([USER], [SHOWN])


def test_prompt_for_a_template_with_tools_but_no_known_format() -> None:
    (message,), tools = prepared("{{ tools }}{{ messages[0].content }}", [USER], [TOOL], required=True)
    assert message["content"] == f"How warm is it?\n---\n{TOOL_PROMPT}"
    assert tools == [SHOWN]


def test_described_tools_have_every_key_that_templates_read() -> None:
    tool = {"type": "function", "function": {"name": "now", "description": None, "parameters": {}}}
    empty = {"type": "object", "properties": {}}
    _, tools = prepared(TEMPLATES["hermes"], [USER], [tool])
    assert tools == [
        {"type": "function", "function": {"name": "now", "description": "", "parameters": empty}}
    ]
    assert '"name": "now"' in rendered(TEMPLATES["hermes"], [USER], [tool])


def test_tool_prompt_is_not_appended_to_the_assistants_message() -> None:
    messages, _ = prepared(PLAIN, [USER, {"role": "assistant", "content": "It is"}], [TOOL])
    assert messages[1] == {"role": "assistant", "content": "It is"}
    assert messages[0]["content"].endswith(MAY_ANSWER)
    assert rendered(PLAIN, [USER, {"role": "assistant", "content": "It is"}], [TOOL]).endswith(
        "<assistant>It is"
    )


REFUSED = {("mistral-v3", 2), ("mistral-nemo", 2)}
"""Templates that refuse a user's message directly after a result."""


@pytest.mark.parametrize("family", ALL)
def test_every_template_shows_calls_and_results(family: str) -> None:
    """Each is tried with tools and, as in a later request, without; turns where it requires them."""
    answer = {"role": "assistant", "content": "It is 21 °C."}
    two = [
        CALL,
        {"id": "call_y", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}},
    ]
    conversations = [
        [USER, CALLS, RESULT],
        [USER, CALLS, RESULT, answer, {"role": "user", "content": "And in Bern?"}],
        [USER, CALLS, RESULT, {"role": "user", "content": "And in Bern?"}],
        [
            USER,
            CALLS | {"tool_calls": two},
            RESULT,
            {"role": "tool", "tool_call_id": "call_y", "content": "19 °C"},
        ],
    ]
    for number, messages in enumerate(conversations):
        if (family, number) in REFUSED:
            continue
        for tools in ([], [TOOL]):
            text = rendered(ALL[family], messages, tools)
            wanted = ["How warm", "weather", "Zürich", "21 °C"] + ["Bern"] * (number > 0)
            if family == "glm4":
                text = text.replace("\\u00fc", "ü")
            for part in wanted:
                assert part in text
            assert '\\"city' not in text


@pytest.mark.parametrize("family", ["llama3.1-tools", "gpt-oss"])
def test_calls_of_one_message_come_one_by_one_where_a_template_prints_one(family: str) -> None:
    cities = ["Bern", "Rome", "Oslo"]
    calls = [
        {"id": city, "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        for city in cities
    ]
    results = [
        {"role": "tool", "tool_call_id": city, "content": f"warm in {city}"}
        for city in ("Rome", "Bern", "Oslo")
    ]
    text = rendered(TEMPLATES[family], [USER, {**CALLS, "content": "So:", "tool_calls": calls}, *results])
    places = [text.index(part) for city in cities for part in (f'"city": "{city}"', f"warm in {city}")]
    assert places == sorted(places)
    assert text.count("So:") <= 1
    done, _ = prepared(TEMPLATES[family], [USER, CALLS | {"tool_calls": calls}, RESULT, *results[:1]])
    assert [message.get("tool_call_id") for message in done if message["role"] == "tool"] == [
        "Rome",
        "call_x",
    ], "a result without its call comes last"


def test_arguments_have_the_form_that_the_template_prints() -> None:
    """Other than in TGI (C33), arguments are not JSON text within JSON text."""
    assert '"arguments": {"city": "Zürich"}' in rendered(TEMPLATES["qwen3"], [USER, CALLS, RESULT])
    as_text = (
        "{% for m in messages %}{% if m.tool_calls %}{{ m.content + m.tool_calls[0].function.arguments }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert rendered(as_text, [USER, CALLS, RESULT]) == 'How warm is it?{"city": "Zürich"}21 °C'
    as_object = {"function": {"name": "f", "parameters": {"a": 1}}}
    text = rendered(
        as_text, [USER, {"role": "assistant", "content": "So: ", "tool_calls": [as_object]}, RESULT]
    )
    assert text == 'How warm is it?So: {"a": 1}21 °C'


def test_arguments_that_are_not_json_stay_text() -> None:
    broken = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]}
    assert '"arguments": {a}' in rendered(TEMPLATES["qwen3"], [USER, broken, RESULT])
    assert '{"name": "f", "parameters": {a}' in rendered(PLAIN, [USER, broken, RESULT])


def test_calls_become_text_for_a_template_without_calls() -> None:
    (_, call, result), _ = prepared(PLAIN, [USER, CALLS | {"content": "Let me see."}, RESULT])
    assert call["content"] == 'Let me see.\n{"name": "weather", "parameters": {"city": "Zürich"}}'
    assert "tool_calls" not in call
    assert result == RESULT


def test_results_become_user_messages_for_a_template_without_tool_role() -> None:
    """Such templates require turns: consecutive messages of users are joined where one is a result."""
    other = RESULT | {"content": "19 °C"}
    messages = [
        USER,
        CALLS,
        RESULT,
        other,
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "Ah"},
    ]
    done, _ = prepared(TEMPLATES["gemma"], messages)
    assert [message["role"] for message in done] == ["user", "assistant", "user", "assistant"]
    assert done[2]["content"] == "21 °C\n19 °C\nSo?"


def test_messages_in_a_row_are_joined_where_a_template_requires_turns() -> None:
    answer = {"role": "assistant", "content": "Ah"}
    messages = [USER, USER, answer, answer, USER]
    done, _ = prepared(TEMPLATES["gemma"], messages)
    assert [message["content"] for message in done] == [
        "How warm is it?\nHow warm is it?",
        "Ah\nAh",
        "How warm is it?",
    ]
    assert prepared(TEMPLATES["chatml"], messages)[0] == messages


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_template_shows_system_messages(family: str) -> None:
    """One that the template would refuse or leave out is a part of the user's message."""
    if family == "smolvlm-parts":
        return
    answer = {"role": "assistant", "content": "It is 21 °C."}
    early, late = ({"role": "system", "content": text} for text in ("Be terse.", "Be polite."))
    for messages in ([early, USER], [early, USER, answer, late, USER], [early, late, USER, answer, USER]):
        text = rendered(TEMPLATES[family], messages)
        assert "Be terse." in text
        assert late not in messages or "Be polite." in text
        assert text.count("How warm") == len([m for m in messages if m["role"] == "user"])


@pytest.mark.parametrize("family", TEMPLATES)
def test_text_beside_calls_is_shown(family: str) -> None:
    """Mistral's templates show none, and refuse it in a message of its own: it comes behind the results."""
    conversation = [
        USER,
        CALLS | {"content": "Let me see."},
        RESULT,
        {"role": "assistant", "content": "Warm."},
    ]
    text = rendered(TEMPLATES[family], [*conversation, USER])
    assert "Let me see." in text
    for part in ("Zürich" if family != "glm4" else "Z\\u00fcrich", "21 °C", "Warm."):
        assert part in text


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be terse."}]])
def test_tools_are_a_field_of_the_system_message_where_a_template_prints_them_so(system: Any) -> None:
    """As Phi-4-mini's does, whose format of calls is known."""
    messages, tools = prepared(TEMPLATES["phi4-mini"], [*system, USER], [TOOL])
    assert tools == [SHOWN]
    content = system[0]["content"] if system else ""
    assert messages == [
        {"role": "system", "content": content, "tools": json.dumps([SHOWN["function"]])},
        USER,
    ]
    assert f"<|system|>{content}<|tool|>[{{" in rendered(TEMPLATES["phi4-mini"], [*system, USER], [TOOL])


PYTHONIC = (
    "{% for m in messages | rejectattr('role', 'equalto', 'tool') | selectattr('tool_calls', 'undefined') %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "{% endfor %}{% for m in messages %}<{{ m.role }}>{% if 'tool_calls' in m %}[{% for c in m.tool_calls %}"
    "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}"
    "{% endfor %}){% endfor %}]{% endif %}{{ m.content }}{% endfor %}"
)


def test_calls_are_left_to_a_template_that_counts_turns_without_them() -> None:
    done = {"role": "assistant", "content": "Done."}
    text = rendered(
        PYTHONIC, [USER, CALLS | {"content": ""}, RESULT, done, {"role": "user", "content": "Thanks"}]
    )
    assert text == (
        '<user>How warm is it?<assistant>[weather(city="Zürich")]<tool>21 °C<assistant>Done.<user>Thanks'
    )


COMMAND_A = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{{ m.content[0].thinking }}"
    "{{ m.tool_calls | tojson }}{% elif m.role == 'tool' %}{% for part in m.content %}{{ part | tojson }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_parts_go_around_calls_where_a_template_prints_only_those() -> None:
    text = rendered(COMMAND_A, [USER, CALLS, RESULT])
    assert '"arguments": {"city": "Zürich"}' in text
    assert text.endswith('<tool>{"type": "text", "text": "21 °C"}')


BOTH = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}"
    "{% if m.content and m.thinking %}{{ raise_exception('both') }}{% endif %}{{ m.content or m.thinking }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_text_and_thoughts_beside_calls_reach_a_template_that_takes_one_of_them() -> None:
    """As gpt-oss' does."""
    message = CALLS | {"content": "Let me see.", "reasoning_content": "Hm."}
    text = rendered(BOTH, [USER, message, RESULT])
    assert text.startswith("<user>How warm is it?<assistant>Let me see.<assistant>")
    assert text.endswith('{"city": "Zürich"}<tool>21 °C')


KIMI = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}{% endfor %}"
    "{% if m.role == 'tool' %}[{{ m.tool_call_id }}]{% endif %}{% endfor %}"
)


def test_ids_name_the_function_where_a_template_prints_them_instead() -> None:
    other = {"id": "b", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    results = [RESULT, RESULT | {"tool_call_id": "b"}]
    text = rendered(KIMI, [USER, CALLS | {"tool_calls": [CALL, other]}, *results, CALLS, RESULT])
    assert '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Zürich"}' in text
    assert "functions.clock:1<|tool_call_argument_begin|>{}" in text
    assert text.count("[functions.weather:0]") == 1
    assert text.count("[functions.clock:1]") == 1
    assert text.count("[functions.weather:2]") == 1, "the same id again is another call"


def test_mistral_templates_get_ids_of_nine_characters() -> None:
    messages = [USER, CALLS, RESULT, CALLS | {"tool_calls": [CALL | {"id": "AbCd12345"}]}]
    messages += [{"role": "tool", "tool_call_id": "AbCd12345", "content": "x"}]
    done, _ = prepared(TEMPLATES["mistral-v3"], messages, [TOOL])
    ids = [done[1]["tool_calls"][0]["id"], done[2]["tool_call_id"]]
    assert ids == ["000000000", "000000000"]
    assert (done[3]["tool_calls"][0]["id"], done[4]["tool_call_id"]) == ("AbCd12345", "AbCd12345")
    done, _ = prepared(TEMPLATES["qwen3"], messages, [TOOL])
    assert done[1]["tool_calls"][0]["id"] == "call_x"


@pytest.mark.parametrize("template", TOOL_TEMPLATES.values(), ids=list(TOOL_TEMPLATES))
@pytest.mark.parametrize("arguments", ['{"city": "Ro', '["Rome"]', "Rome"])
def test_arguments_that_are_no_object_reach_the_model_with_their_result(
    template: str, arguments: str
) -> None:
    """An answer may end within a call, and agents send it again."""
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    answer = {"role": "assistant", "tool_calls": [call]}
    text = rendered(template, [{"role": "user", "content": "What?"}, answer, RESULT])
    assert arguments in text
    assert "21 °C" in text.partition(arguments)[2]


ONLY_CALLS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
PLAIN_ANSWERS = (  # an answer without calls only behind a user's message
    "{% set ns = namespace(last='') %}{% for m in messages if m.role == 'user' or "
    "(m.role == 'assistant' and not m.tool_calls) %}{% if m.role == 'assistant' and ns.last == 'assistant' %}"
    "{{ raise_exception('turns') }}{% endif %}{% set ns.last = m.role %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("after", "text"),
    [
        ([], "[assistant]Let me see.\n"),
        ([{"role": "assistant", "content": "Warm."}], "[assistant]Let me see.\nWarm."),
        ([{"role": "user", "content": "And?"}], "[assistant]Let me see.[user]And?"),
    ],
)
def test_a_text_beside_calls_is_printed_where_a_template_has_a_place_for_it(
    after: list[dict[str, Any]], text: str
) -> None:
    messages = [{"role": "user", "content": "What?"}, {**CALLS, "content": "Let me see."}, RESULT, *after]
    prompt = rendered(PLAIN_ANSWERS + ONLY_CALLS, messages)
    assert text in prompt
    assert prompt.count("Let me see.") == prompt.count("21 °C") == prompt.count("weather") == 1


def test_a_developer_is_a_system_message_unless_the_template_prints_that_role() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    words = (
        "{# for every developer #}{% for m in messages if m.role != 'developer' %}{{ m.content }}{% endfor %}"
    )
    assert rendered(words, messages) == "Be brief.What?"
    knows = "{% for m in messages %}{{ 'D:' if m.role == 'developer' }}{{ m.content }}{% endfor %}"
    assert rendered(knows, messages) == "D:Be brief.What?"
