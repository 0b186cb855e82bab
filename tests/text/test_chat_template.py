"""Chat templates (tgi-behaviour 4.1 to 4.4, 12.4), compared with transformers' apply_chat_template."""

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tgi.errors import TemplateError
from tgi.text.abilities import Abilities
from tgi.text.chat_template import ChatTemplates

from .chat_templates import TEMPLATES

Messages = list[dict[str, Any]]

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SYSTEM = {"role": "system", "content": " You are terse. "}
HELLO = {"role": "user", "content": 'Hello, what\'s <b>new</b> & "old"?\n'}
ANSWER = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNothing, 日本 😀"}
AGAIN = {"role": "user", "content": "  And in Brooklyn?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "a1b2c3d4e",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3, "alerts": None}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": "weather", "content": '{"temperature": 21}'}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city's <days>",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"]}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
CONVERSATIONS: dict[str, Messages] = {
    "one question": [HELLO],
    "system": [SYSTEM, HELLO],
    "many turns": [SYSTEM, HELLO, ANSWER, AGAIN, ANSWER, AGAIN],
    "no system": [HELLO, ANSWER, AGAIN],
    "tool result": [HELLO, CALL, RESULT],
    "tool result, system": [SYSTEM, HELLO, ANSWER, AGAIN, CALL, RESULT, ANSWER, AGAIN],
    "two results": [HELLO, CALL | {"tool_calls": CALL["tool_calls"] * 2}, RESULT, RESULT],  # type: ignore[operator]
    "thoughts": [HELLO, ANSWER | {"content": "Well", "reasoning": "I see."}, AGAIN],
    "an unknown role": [{"role": "critic", "content": "bad"}],
    "answers in a row": [HELLO, ANSWER, ANSWER, HELLO],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]}],
}


@pytest.fixture(scope="module")
def judge() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)


def expected(judge: PreTrainedTokenizerFast, template: str, messages: Messages, **options: Any) -> str | None:
    """Return the prompt of transformers, or None where it raises an error."""
    options = {"add_generation_prompt": True} | options
    try:
        text: str = judge.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError):
        return None
    return text


def rendered(template: str, messages: Messages, tools: Any = None, **extra: Any) -> str | None:
    try:
        return ChatTemplates({"default": template}, SPECIAL).render(messages, tools, extra)
    except TemplateError:
        return None


def test_templates_of_thirty_families_are_tried() -> None:
    assert len(TEMPLATES) >= 30


@pytest.mark.parametrize("family", TEMPLATES)
def test_prompts_equal_those_of_transformers(family: str, judge: PreTrainedTokenizerFast) -> None:
    template = TEMPLATES[family]
    succeeded = 0
    for messages in CONVERSATIONS.values():
        for tools in (None, TOOLS[:1], TOOLS):
            wanted = expected(judge, template, messages, tools=tools)
            assert rendered(template, messages, tools) == wanted
            succeeded += wanted is not None
    assert succeeded >= 3, "the template refuses everything"


@pytest.mark.contract("4.4")
@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize(
    "content", ["The answer", " is\n\n4", "s", "assistant", "<think>\nHm.\n</think>\n\nIt is"]
)
def test_a_final_answer_is_continued(family: str, content: str, judge: PreTrainedTokenizerFast) -> None:
    """As with transformers' continue_final_message.

    TGI fails where the template trims the content, and where it prints the text again after it.
    """
    template = TEMPLATES[family]
    for before in ([HELLO], [SYSTEM, HELLO], [HELLO, ANSWER, AGAIN]):
        given_text = [*before, {"role": "assistant", "content": content}]
        if family == "smolvlm-parts":
            given_text = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in given_text]
        wanted = expected(judge, template, given_text, **CONTINUE)
        if family == "deepseek-r1" and "</think>" in content:
            # The template drops the thoughts, and transformers gives up where only the end is printed.
            wanted = expected(
                judge, template, [*before, {"role": "assistant", "content": "\n\nIt is"}], **CONTINUE
            )
        assert rendered(template, given_text) == wanted


@pytest.mark.contract("4.4")
def test_a_final_answer_with_spaces_at_its_end_loses_them() -> None:
    assert rendered("{{ messages[0].content }}</s>", [{"role": "assistant", "content": "so \n"}]) == "so"


def test_final_answer_that_is_not_printed_is_not_continued() -> None:
    template = "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    assert rendered(template, [AGAIN, ANSWER]) == AGAIN["content"] + ">"


@pytest.mark.contract("4.4")
def test_an_empty_final_answer_is_only_trimmed() -> None:
    messages = [HELLO, {"role": "assistant", "content": ""}]
    assert rendered(TEMPLATES["qwen2"], messages) == rendered(TEMPLATES["internlm"], messages).replace(  # type: ignore[union-attr]
        "<s>", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    )
    text = rendered(TEMPLATES["internlm"], messages)
    assert text is not None
    assert text.endswith("<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant")


def test_a_final_call_is_not_continued(judge: PreTrainedTokenizerFast) -> None:
    messages = [HELLO, CALL | {"content": "Let me see"}]
    template = TEMPLATES["qwen2.5"]
    assert rendered(template, messages) == expected(judge, template, messages)


def test_request_variables_reach_the_template(judge: PreTrainedTokenizerFast) -> None:
    template = TEMPLATES["qwen3"]
    wanted = expected(judge, template, [HELLO], enable_thinking=False)
    assert wanted is not None
    assert wanted.endswith("</think>\n\n")
    assert rendered(template, [HELLO], enable_thinking=False) == wanted
    documents = [{"title": "t", "text": "x"}, {"title": "u", "text": "y"}]
    wanted = expected(judge, TEMPLATES["granite"], [HELLO], documents=documents, controls={"length": "short"})
    assert (
        rendered(TEMPLATES["granite"], [HELLO], documents=documents, controls={"length": "short"}) == wanted
    )
    assert rendered("{{ bos_token }}", [HELLO], bos_token="B") == "B"
    templates = ChatTemplates({"default": "{{ messages[0].content }}"}, {})
    assert templates.render([{"role": "user", "content": "x"}], None, {"messages": [1]}) == "x"


@pytest.mark.contract("C18", "C19")
def test_special_tokens_are_variables_unless_unset(judge: PreTrainedTokenizerFast) -> None:
    """As in C18; other than in C19, an unset token is undefined and prints nothing."""
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}{{ cls_token }}"
    assert rendered(template, [HELLO]) == expected(judge, template, [HELLO]) == "<s></s><pad>False"


@pytest.mark.contract("C14")
def test_strftime_now_gives_the_date() -> None:
    assert rendered("{{ strftime_now('%Y') }}", [HELLO]) in (
        str(datetime.now().year),
        str(datetime.now().year - 1),
    )


_text = st.text(st.sampled_from("ab {}%<>&'\"\\\n\té日😀_"), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=_json, content=_text)
def test_values_print_as_in_transformers(judge: PreTrainedTokenizerFast, value: Any, content: str) -> None:
    template = (
        "{{ value }}|{{ value | tojson }}|{{ value | tojson(indent=4) }}|"
        "{{ value | tojson(sort_keys=true) }}|{{ value is string }}{{ value is mapping }}{{ value is none }}|"
        "{{ messages }}|{{ messages[0].content | trim }}{{ messages[0].content.split('a') }}"
    )
    messages = [{"role": "user", "content": content}]
    assert rendered(template, messages, value=value) == expected(judge, template, messages, value=value)


@pytest.mark.contract("V35", "12.4")
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('M') }}", "syntax error: M (in <string>:1)"),
        (
            "\n{% macro f() %}\n{{ raise_exception('a\\nb') }}\n{% endmacro %}\n\n{{ f() }}",
            "syntax error: a\nb (in <string>:3)",
        ),
        ("{{ nope.x }}", "undefined value (in <string>:1)"),
        ("a\n\n{{ messages[7]['role'] }}", "undefined value (in <string>:3)"),
        ("a\n{{ 'a' + none }}", "invalid operation: "),
        ("{{ messages.append(1) }}", "invalid operation: "),
        ("{{ ''.__class__.__mro__ }}", "invalid operation: "),
        ("{{ raise_exception.__globals__.x }}", "invalid operation: "),
        ("{% set n = namespace(__class__=1) %}", "invalid operation: "),
        ("{% set n = namespace(a=1) %}{% set n.__class__ = 1 %}", "invalid operation: "),
        ("{% for i in range(10000000) %}{% endfor %}", "invalid operation: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "invalid operation: "),
        ("a\n{% if %}", "syntax error: Expected an expression"),
        ("{{ 'a' | no_such_filter }}", "syntax error: No filter named"),
        ("{% break %}", "invalid operation: "),
    ],
)
def test_template_error_names_kind_and_line(template: str, message: str) -> None:
    """The message is TGI's where that is known."""
    with pytest.raises(TemplateError) as raised:
        ChatTemplates({"default": template}, {}).render([HELLO])
    text = str(raised.value)
    assert raised.value.status == 422
    assert text.startswith(f"Template error: {message}")
    assert "(in <string>:" in text


@pytest.mark.contract("C8", "V34")
def test_missing_template_is_an_error_of_the_request(tmp_path: Path) -> None:
    templates = ChatTemplates.from_folder(tmp_path)
    assert not templates.knows_tools()
    assert templates.source(False) is None
    with pytest.raises(TemplateError, match=r"^Template error: template not found$"):
        templates.render([HELLO])


def write(folder: Path, **files: Any) -> Path:
    """Write files by name, `__` for a dot and `___` for a slash; values other than text become JSON."""
    for name, content in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.contract("C2", "C3")
def test_template_places_have_an_order(tmp_path: Path) -> None:
    """A file that the operator names precedes those of the folder."""
    in_order = {
        "mine__jinja": "--chat-template",
        "mine__json": {"chat_template": "--tokenizer-config-path"},
        "chat_template__jinja": "chat_template.jinja",
        "chat_template__json": {"chat_template": "chat_template.json"},
        "tokenizer_config__json": {"chat_template": "tokenizer_config.json"},
        "processor_config__json": {"chat_template": "processor_config.json"},
    }
    write(tmp_path, **in_order)
    named: dict[str, Any] = {"template": tmp_path / "mine.jinja", "tokenizer_config": tmp_path / "mine.json"}
    assert ChatTemplates.from_folder(tmp_path, **named).render([HELLO]) == "--chat-template"
    del named["template"]
    assert ChatTemplates.from_folder(tmp_path, **named).render([HELLO]) == "--tokenizer-config-path"
    for name in list(in_order)[2:]:
        path = tmp_path / name.replace("__", ".")
        assert ChatTemplates.from_folder(tmp_path).render([HELLO]) == path.name
        path.unlink()
    assert ChatTemplates.from_folder(tmp_path).source(False) is None


def test_missing_file_of_the_operator_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ChatTemplates.from_folder(tmp_path, template=tmp_path / "no.jinja")
    with pytest.raises(FileNotFoundError):
        ChatTemplates.from_folder(tmp_path, tokenizer_config=tmp_path / "no.json")


@pytest.mark.contract("C2", "--tokenizer-config-path")
def test_a_named_tokenizer_config_replaces_the_folders(tmp_path: Path) -> None:
    """Its tokens count, too; a template that it lacks is looked for in the other places."""
    write(
        tmp_path,
        tokenizer_config__json={"bos_token": "<a>", "chat_template": "{{ bos_token }}"},
        mine__json={"bos_token": "<b>"},
        chat_template__jinja="{{ bos_token }}!",
    )
    assert ChatTemplates.from_folder(tmp_path).render([HELLO]) == "<a>!"
    assert (
        ChatTemplates.from_folder(tmp_path, tokenizer_config=tmp_path / "mine.json").render([HELLO]) == "<b>!"
    )


@pytest.mark.contract("C6")
def test_the_folder_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path,
        tokenizer_config__json={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"__type": "AddedToken", "content": "<b>", "lstrip": False},
            "chat_template": [
                {"name": "default", "template": "{{ bos_token }}{{ eos_token }} plain"},
                {"name": "tool_use", "template": "{{ bos_token }} {{ tools | tojson }}"},
                {"name": "rag", "template": "never"},
            ],
        },
        special_tokens_map__json={"eos_token": "<e>"},
    )
    for more in (
        {},
        {"chat_template__jinja": "new {{ eos_token }}\n\n"},
        {"additional_chat_templates___tool_use__jinja": "tools {{ tools[0].function.name }}"},
    ):
        write(tmp_path, **more)
        reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        templates = ChatTemplates.from_folder(tmp_path)
        for tools in (None, TOOLS):
            wanted = reference.apply_chat_template(
                [HELLO], tools=tools, tokenize=False, add_generation_prompt=True
            )
            assert templates.render([HELLO], tools) == wanted


@pytest.mark.contract("C4")
def test_tool_use_template_serves_requests_with_tools(tmp_path: Path) -> None:
    """Named templates come from a list or from files, beside a template of any place."""
    named = [{"name": "rag", "template": "rag"}, {"name": "tool_use", "template": "tools"}]
    write(tmp_path, tokenizer_config__json={"chat_template": named})
    templates = ChatTemplates.from_folder(tmp_path)
    assert templates.render([HELLO], TOOLS) == "tools"
    assert not templates.knows_tools()
    with pytest.raises(TemplateError, match="template not found"):
        templates.render([HELLO])
    write(
        tmp_path,
        tokenizer_config__json={"chat_template": "plain"},
        additional_chat_templates___tool_use__jinja="{{ tools | length }}",
    )
    templates = ChatTemplates.from_folder(tmp_path)
    assert (templates.render([HELLO]), templates.render([HELLO], TOOLS)) == ("plain", "2")
    assert templates.knows_tools()
    assert (templates.source(True), templates.source(False)) == ("{{ tools | length }}", "plain")


@pytest.mark.contract("C5")
@pytest.mark.parametrize("broken", ["{", "[]", '{"chat_template": 3}', '{"chat_template": [3, {"name": 1}]}'])
def test_malformed_configuration_files_are_ignored(tmp_path: Path, broken: str) -> None:
    write(tmp_path, chat_template__json=broken, tokenizer_config__json={"chat_template": "t", "bos_token": 3})
    assert ChatTemplates.from_folder(tmp_path).render([HELLO]) == "t"


def test_a_template_that_does_not_compile_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TGI does not start (C7); this server does."""
    write(tmp_path, chat_template__jinja="\n{% for %}")
    with caplog.at_level(logging.WARNING):
        templates = ChatTemplates.from_folder(tmp_path)
    assert "(in <string>:2)" in caplog.text
    assert not templates.knows_tools()
    with pytest.raises(TemplateError, match="syntax error"):
        templates.render([HELLO])


@pytest.mark.parametrize("family", TEMPLATES)
def test_templates_that_read_tools_are_recognised(family: str) -> None:
    knowing = """llama3.1-tools mistral-v3 mistral-nemo qwen2.5 qwen3 hermes command-r granite glm4
        functionary gpt-oss phi4-mini""".split()
    assert ChatTemplates({"default": TEMPLATES[family]}, {}).knows_tools() is (family in knowing)


@pytest.mark.parametrize("family", TEMPLATES)
def test_abilities_of_known_templates(family: str) -> None:
    """Expected values were found by hand: calls as clients send them, and results without calls."""
    knowing = """llama3.1-tools mistral-v3 mistral-nemo qwen2.5 qwen3 hermes deepseek-r1 command-r granite
        glm4 functionary gpt-oss""".split()
    no_tool_role = "llama2 mistral-v1 gemma phi3 falcon zephyr vicuna alpaca deepseek-v2 yi olmo".split()
    first_system = "llama2 mistral-v3 mistral-nemo vicuna alpaca deepseek-r1 command-r yi".split()
    any_role = """chatml llama3 llama3.1-tools gemma3 phi4-mini qwen2 granite smollm-generation smolvlm-parts
        internlm glm4 solar-break functionary gpt-oss""".split()
    no_text = "mistral-v3 mistral-nemo".split()
    joining = {"gemma3": frozenset({"user", "assistant"}), "smolvlm-parts": {"system", "user", "assistant"}}
    templates = ChatTemplates({"default": TEMPLATES[family]}, SPECIAL)
    for with_tools in (False, True):
        abilities = templates.abilities(with_tools)
        beside = "beside" if family in ("qwen2.5", "qwen3", "functionary") else "before"
        assert abilities == Abilities(
            parts=family == "smolvlm-parts",
            joins_parts=joining.get(family, frozenset()),
            system="first"
            if family in first_system
            else None
            if family in ("mistral-v1", "gemma", "solar-break")
            else "anywhere",
            developer=family in any_role,
            tools_in_system=family == "phi4-mini",
            turns=family in ("llama2", "mistral-v1", "mistral-v3", "mistral-nemo", "gemma"),
            calls="objects" if family in knowing else None,
            several_calls=family in knowing and family not in ("llama3.1-tools", "gpt-oss"),
            text_of_calls=beside if family in knowing and family not in no_text else None,
            tool_role=family not in no_tool_role,
        )
        assert bool(abilities.printed_call) == (family in knowing)


_ARGUMENTS = "m.tool_calls[0].function.arguments"
_EACH = f"for k, v in {_ARGUMENTS}.items()"


@pytest.mark.parametrize(
    ("call", "calls", "no_content"),
    [
        ("{{ m.tool_calls[0].function.arguments | tojson }}", "objects", "absent"),
        ("{{ m.content + m.tool_calls[0].function.arguments | tojson }}", "objects", "empty"),
        ("{{ '' + m.tool_calls[0].function.arguments }}", "texts", "absent"),
        ("{{ m.content + m.tool_calls[0].function.arguments }}", "texts", "empty"),
        (f"{{% if m.content is none %}}{{{{ '' + {_ARGUMENTS} }}}}{{% endif %}}", "texts", "none"),
        ("{{ m.tool_calls }}", "texts", "absent"),
        (f"{{% {_EACH} %}}{{{{ k }}}}={{{{ v }}}},{{% endfor %}}", "objects", "absent"),
        (f"{{% {_EACH} %}}<{{{{ k }}}}>{{{{ v }}}}</{{{{ k }}}}>{{% endfor %}}", "objects", "absent"),
        ("{{ m.content }}", None, "absent"),
        ("{{ raise_exception('no') }}", None, "absent"),
    ],
)  # fmt: skip
def test_form_of_printed_calls_is_found_by_trial(call: str, calls: Any, no_content: str) -> None:
    template = (
        f"{{% for m in messages %}}{{% if m.tool_calls %}}{call}{{% else %}}{{{{ m.content }}}}"
        "{% endif %}{% endfor %}"
    )
    abilities = ChatTemplates({"default": template}, {}).abilities(False)
    assert (abilities.calls, abilities.no_content) == (calls, no_content)


def test_messages_are_left_as_they_were() -> None:
    messages = [HELLO, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "thinking": "b"}]
    before = json.dumps(messages)
    rendered("{{ messages[-1].content[0].text }}", messages)
    assert json.dumps(messages) == before
