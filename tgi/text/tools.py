"""Tool calls of one model: the format that its chat template uses, and grammars that hold answers to it."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence

import attrs

from tgi.errors import ValidationError

from .chat_template import ChatTemplates
from .grammar import GrammarSpec, tokens_that_are_no_text
from .json_schema import GrammarError, prepare_schema, read_schema
from .tokenizer import Tokenizer
from .tool_formats import FORMATS, GENERIC, Tool, ToolFormat, schema_json

_THOUGHTS_END = "</think>"
_TEXT = "/(?s:.+)/"
_NO_CALL = _TEXT + r' & ~/\s*\{\s*"name"(?s:.*)/'
"""Text that does not begin like a call in a format without a mark."""


@attrs.frozen(kw_only=True)
class ToolCalling:
    """How the model calls tools: a format, with what its chat template and tokenizer add to it."""

    format: ToolFormat
    taught: bool = True
    """Whether the chat template explains the format to the model."""
    single: bool = False
    """Whether the model makes one call at a time."""
    thinks: bool = False
    """Whether the template knows thoughts, which may precede a call that is required."""
    special_tokens: dict[str, int] = attrs.field(factory=dict, eq=False, repr=False)
    """Ids, by name, of tokens that a grammar matches by their ids, except those that end an answer."""

    @classmethod
    def of(cls, templates: ChatTemplates, tokenizer: Tokenizer) -> "ToolCalling":
        """Recognise the format in the chat template for tools; GENERIC if it shows none that is known."""
        source = templates.source(with_tools=True) or ""
        known = [style for style in FORMATS if all(sign in source for sign in style.signs)]
        taught = bool(known) and templates.knows_tools()
        style = known[0] if taught else GENERIC
        tokens = tokens_that_are_no_text(tokenizer)
        return cls(
            format=style,
            taught=taught,
            single="tool_calls|length == 1" in source.replace(" | ", "|"),
            thinks=_THOUGHTS_END in source and style.mark != "",
            special_tokens={name: id_ for name, id_ in tokens.items() if id_ not in tokenizer.eos_ids},
        )

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, text: GrammarSpec | None = None
    ) -> GrammarSpec:
        """Return the grammar of an answer: calls, or text as well if calls are not `required`.

        Text may precede calls if the format has a mark, unless `text` is given: the grammar of an answer
        without calls. Raises ToolError for parameters that are no schema, and ValidationError for such a
        `text`.
        """
        mark = self.format.mark
        # Without a mark, a call is told from other JSON by its lexemes, which must be the same then.
        among_json = not (mark or required or text is None)
        calls = f"{self._literal(mark)} calls"
        if required and not self.thinks:
            rules = [f"start: {calls}"]
        elif required:
            rules = [f"start: {calls} | thoughts SPACE {calls}", r"SPACE: /\s{0,2}/"]
            rules += self._up_to("thoughts", _THOUGHTS_END, f"{_TEXT} & ~/(?s:.*){_regex(mark)}(?s:.*)/")
        elif text is not None:
            rules = [f"start: answer | {calls}", f"answer: {_answer(text, among_json)}"]
        elif mark:
            rules = ["start: text | before calls", f"text: {self._free_text()}", f"TEXT: {_TEXT}"]
            rules += self._up_to("before", mark, _TEXT)
        else:
            text_rule = self._free_text(first="FIRST")
            rules = ["start: text | calls", f"text: {text_rule}", f"FIRST: {_NO_CALL}", f"TEXT: {_TEXT}"]
        rules += self.format.rules(
            tools, self._literal, several=parallel and not self.single, among_json=among_json
        )
        return GrammarSpec("lark", "\n".join(rules) + "\n")

    def _free_text(self, first: str = "TEXT") -> str:
        """Return an expression for text and special tokens except the mark; `first` is text at its start."""
        special = self._any_special(self.format.mark)
        return f"{first}? ({special} TEXT?)*" if special else f"{first}?"

    def _up_to(self, rule: str, end: str, terminal: str) -> Iterable[str]:
        """Yield rules for text of `terminal`s and special tokens up to and including the first `end`."""
        name = rule.upper()
        yield f"{name}: {terminal}"
        special = self._any_special(self.format.mark, end)
        before = f"({name}? {special})*" if special else ""
        if end in self.special_tokens:
            yield f"{rule}: {before} {name}? {self._literal(end)}"
        else:
            yield f"{rule}: {before} {rule}_end"
            yield f"{rule}_end[lazy]: {name}? {self._literal(end)}"

    def _any_special(self, *without: str) -> str:
        """Return an expression for any special token but those named; "" if the model has no others."""
        ids = sorted(id_ for name, id_ in self.special_tokens.items() if name not in without)
        # Consecutive ids have the same distance to their places in the list.
        runs = itertools.groupby(enumerate(ids), lambda item: item[1] - item[0])
        ranges = [[id_ for _, id_ in run] for _, run in runs]
        return f"<[{','.join(f'{run[0]}-{run[-1]}' for run in ranges)}]>" if ranges else ""

    def _literal(self, text: str) -> str:
        """Return the expression that matches a text, with special tokens named by their ids."""
        names = sorted((name for name in self.special_tokens if name in text), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        return " ".join(
            f"<[{self.special_tokens[part]}]>" if part in names else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )


def _regex(text: str) -> str:
    return re.sub(r"[^\w ]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def _answer(text: GrammarSpec, among_json: bool) -> str:
    """Return the body of a Lark rule for an answer without calls."""
    if text.kind == "regex":
        escaped = {"/": r"\/", "\n": r"\n"}
        parts = re.findall(r"\\.|.", text.source, re.DOTALL)
        return f"/(?:{''.join(escaped.get(part, part) for part in parts)})/"
    try:
        return "%json " + schema_json(prepare_schema(read_schema(text.source)), among_json)
    except GrammarError as error:
        raise ValidationError(f"grammar is not valid: {error}") from error
