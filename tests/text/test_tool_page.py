"""docs/tool-calls.md has tables of formats, each cell of which is tried here.

`python -m tests.text.test_tool_page` writes them.
"""

import json
import re
from pathlib import Path

import jsonschema

from tgi.text.abilities import PROBE, PROBE_ARGUMENTS
from tgi.text.answer_format import AnswerFormat
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarSpec
from tgi.text.messages import prepare_messages
from tgi.text.reasoning import FORMATS as REASONING
from tgi.text.reasoning import HARMONY_THOUGHTS, ReasoningFormat
from tgi.text.tool_arguments import JSON_TEXT, Literals, Tagged
from tgi.text.tool_calls import Tool, ToolFormat
from tgi.text.tool_formats import FORMATS, GENERIC, HARMONY

from . import test_harmony
from .chat_templates import TEMPLATES
from .test_tools import CITY, COMPILERS, TOKENIZERS, allowed
from .tool_templates import TOOL_TEMPLATES, frame

PAGE = Path(__file__).parents[2] / "docs" / "tool-calls.md"
TEMPLATE_OF = TOOL_TEMPLATES | {
    GENERIC.models: TEMPLATES["chatml"],
    HARMONY.models: TEMPLATES["gpt-oss"],
    "Mistral 7B v0.3, Mixtral 8x22B": TEMPLATES["mistral-v3"],
    "Mistral Nemo, Small, Large": TEMPLATES["mistral-nemo"],
    "Hermes, Qwen2.5, Qwen3, Granite 4, SmolLM3": TEMPLATES["qwen2.5"],
    "Granite 3": TEMPLATES["granite"],
    "Llama 3.1, 3.2, 3.3, 4": TEMPLATES["llama3.1-tools"],
}
SCHEMA = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS = [Tool("weather", None, SCHEMA), Tool("clock", None, None)]
CALL, BAD = ("weather", '{"city": "Rome", "days": 3}'), ("weather", '{"city": "Rome", "days": "x"}')
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def style_of(template: str, *, harmony: bool = False) -> tuple[AnswerFormat, ChatTemplates]:
    templates = ChatTemplates({"default": template}, SPECIAL)
    return AnswerFormat.of(templates, test_harmony.TOKENIZER if harmony else TOKENIZERS[True]), templates


def allows(spec: GrammarSpec | None, text: str, *, harmony: bool = False) -> bool:
    """Return whether a grammar allows a whole text."""
    if harmony:
        return test_harmony.allows(spec, text)
    if spec is None:
        return True
    matcher = COMPILERS[True].compile(spec)
    for token in TOKENIZERS[True].encode(text, add_special_tokens=False):
        if token not in allowed(matcher):
            return False
        matcher.advance(token)
    return 1 in allowed(matcher)


def syntax_of(style: ToolFormat) -> str:
    """Return an example of the arguments."""
    arguments = style.arguments
    assert arguments is JSON_TEXT or isinstance(arguments, Tagged | Literals)
    kind = "elements" if isinstance(arguments, Tagged) else "literals"
    kind = "JSON" if arguments is JSON_TEXT else kind
    example = style.arguments.write('{"city": "Rome"}').replace("\n", "↵")
    return f"{kind}: `` {example} ``" if "`" in example else f"{kind}: `{example}`"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def yes(value: bool) -> str:
    return "yes" if value else "no"


def tool_row(style: ToolFormat) -> str:
    harmony = style is HARMONY
    answers, templates = style_of(TEMPLATE_OF[style.models], harmony=harmony)
    assert answers.calls.models == style.models, f"{style.models} is not recognised"
    state = "possible" if harmony else "none"
    written, bad = style.write([CALL]), style.write([BAD])
    two = style.write([CALL, ("clock", "{}")])

    def fits(text: str, *, required: bool) -> bool:
        spec = answers.grammar(TOOLS, required=required, parallel=True, thoughts=state)
        return allows(spec, text, harmony=harmony)

    text = f"{test_harmony.FINAL}Well." if harmony else "Well."
    before = f"<|channel|>commentary<|message|>Well.{test_harmony.NEXT}" if harmony else "Well.\n"
    forced = fits(written, required=True) and not fits(text, required=True) and not fits(bad, required=True)
    automatic = fits(text, required=False) and fits(written, required=False) and not fits(bad, required=False)
    parser = answers.parser(state, TOOLS)
    deltas = [*map(parser.feed, written), parser.feed("", last=True)]
    calls = [call for delta in deltas for call in delta.calls]
    arguments = [call.arguments for call in calls if call.name is None]
    jsonschema.validate(json.loads("".join(arguments)), SCHEMA)
    parser = answers.parser(state, TOOLS)
    after_text = fits(before + written, required=False) and bool(
        parser.feed(before + written, last=True).calls
    )
    cells = [
        style.models,
        syntax_of(style),
        yes(forced),
        ("yes" if after_text else "or text") if automatic else "no",
        "yes" if not harmony and fits(two, required=True) else "one" if answers.single else "no",
        yes(len(arguments) > 9 and calls[0].name == "weather"),
        history(answers, templates),
    ]
    return row(cells)


def history(answers: AnswerFormat, templates: ChatTemplates) -> str:
    """Return how a call of an earlier answer and its result reach the model."""
    call = {"id": "call_1", "type": "function", "function": {"name": PROBE, "arguments": PROBE_ARGUMENTS}}
    messages = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
    ]
    text = templates.render(*prepare_messages(messages, [], templates, answers))
    (value,) = json.loads(PROBE_ARGUMENTS).values()
    assert value in text
    assert "It rains." in text
    assert PROBE in text
    return "printed" if templates.abilities(False).calls else "as text"


def thinking_row(style: ReasoningFormat) -> str:
    harmony = style is HARMONY_THOUGHTS
    template = (
        TEMPLATES["gpt-oss"]
        if harmony
        else frame(
            '{% for c in m.tool_calls %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
            "{{ c.function.arguments | tojson }}}{{ '\\n' }}</tool_call>{% endfor %}",
            teach=f"{style.begin}{style.end}{style.answer_begin}{style.answer_end}{''.join(style.source)}",
        )
    )
    answers, _ = style_of(template, harmony=harmony)
    assert answers.reasoning == style, f"{style.models} is not recognised"
    following = "<|start|>assistant" if harmony else "\n"
    final = test_harmony.FINAL if harmony else style.answer_begin
    thoughts = f"{style.begin}Hm.{style.end}{following}"
    text = f"{thoughts}{final}Well.{style.answer_end}"
    results = []
    for pieces in ([text], list(text)):
        parser = answers.parser("possible", TOOLS)
        deltas = [*map(parser.feed, pieces), parser.feed("", last=True)]
        parts = [delta.thoughts for delta in deltas if delta.thoughts]
        results.append((len(parts), "".join(parts), "".join(delta.content for delta in deltas)))
    separated = all(result[1:] == ("Hm.", "Well.") for result in results)
    forced = answers.grammar(TOOLS, required=True, parallel=False, thoughts="possible", max_thoughts=99)
    call = answers.calls.write([CALL])
    free = answers.grammar(TOOLS, thoughts="possible")
    parsed = answers.parser("possible", TOOLS).feed(thoughts + call, last=True)
    automatic = allows(free, thoughts + call, harmony=harmony) and (parsed.thoughts, parsed.content) == (
        "Hm.",
        "",
    )
    bounded = answers.grammar([], thoughts="possible", max_thoughts=5)
    long = text.replace("Hm.", "Hm. " * 9)
    cells = [
        style.models,
        f"`{style.begin.strip()}` … `{style.end}`",
        " … ".join(f"`{mark}`" for mark in (style.answer_begin, style.answer_end) if mark),
        yes(separated),
        yes(results[1][0] > 1),
        yes(allows(forced, thoughts + call, harmony=harmony) and not allows(forced, text, harmony=harmony)),
        yes(automatic and parsed.calls[0].name == "weather"),
        yes(allows(bounded, text, harmony=harmony) and not allows(bounded, long, harmony=harmony)),
    ]
    return row(cells)


def tables() -> list[list[str]]:
    formats = {style.models: style for style in (GENERIC, *FORMATS)}
    return [[tool_row(style) for style in formats.values()], [thinking_row(style) for style in REASONING]]


def test_the_tables_are_what_was_tried() -> None:
    """Everything works in every format; only Llama's and gpt-oss' templates print one call of a message."""
    found = re.findall(r"^\| ---.*\n((?:\|.*\n)*)", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [rows.splitlines() for rows in found] == tables()
    assert not any("| no |" in rows for rows in found)


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    parts = re.split(r"(?m)^(\| ---.*\n)(?:\|.*\n)*", text)
    rows = ["\n".join(table) + "\n" for table in tables()]
    PAGE.write_text(parts[0] + parts[1] + rows[0] + parts[2] + parts[3] + rows[1] + parts[4], "utf-8")
