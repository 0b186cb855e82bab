"""The form of a model's answers in a chat, as its chat template shows it: thoughts, text and tool calls.

`AnswerFormat` makes the grammars that hold an answer to it; `AnswerParser` reads an answer.
"""

import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs
import msgspec

from tgi.errors import ValidationError

from .abilities import PROBE, PROBE_ARGUMENTS
from .chat_template import ChatTemplates
from .grammar import GrammarSpec, lark_of, regex_term, tokens_that_are_no_text
from .harmony import HARMONY_MARKS, PROMPT_END, HarmonyParser, harmony_rules
from .json_schema import GrammarError
from .reasoning import ReasoningFormat, Thoughts, ThoughtsParser, find_format
from .tokenizer import Tokenizer
from .tool_arguments import pattern_of
from .tool_calls import AnswerDelta, CallDelta, Tool, ToolCallParser, ToolFormat
from .tool_formats import FORMATS, GENERIC, HARMONY

_TEXT = "(?s:.+)"
_MAX_COUNT = 20_000
"""Greatest limit of characters that is enforced: each takes a state of the lexer."""


@attrs.frozen(kw_only=True)
class AnswerFormat:
    """Format of the model's thoughts and tool calls."""

    calls: ToolFormat
    with_tools: bool = True
    """Whether tools may be called; otherwise, calls are content."""
    taught: bool = True
    """Whether the chat template explains `calls` to the model."""
    single: bool = False
    """Whether the model makes one call at a time."""
    reasoning: ReasoningFormat | None = None
    """Format of thoughts; None if the model has none."""
    marks: frozenset[int] = frozenset()
    """Ids of special tokens that are part of the text of an answer."""
    special_tokens: dict[str, int] = attrs.field(factory=dict, eq=False, repr=False)
    """Ids, by name, of tokens that a grammar matches by their ids, except those that end an answer."""

    @classmethod
    @functools.lru_cache(maxsize=4)
    def of(cls, templates: ChatTemplates, tokenizer: Tokenizer, with_tools: bool = True) -> "AnswerFormat":
        """Recognise the formats in the chat template for requests with or without tools.

        Calls are GENERIC if the template shows no format that is known.
        """
        source = templates.source(with_tools) or ""
        known = [style for style in FORMATS if all(sign in source for sign in style.signs)]
        is_taught = bool(known) and templates.knows_tools()
        abilities = templates.abilities(with_tools)
        calls, reasoning = (
            _printed(known, abilities.printed_call) if is_taught else GENERIC,
            find_format(source),
        )
        tokens = tokens_that_are_no_text(tokenizer).items()
        special_tokens = {name: id_ for name, id_ in tokens if id_ not in tokenizer.eos_ids}
        texts = calls.texts if with_tools else ()
        if reasoning is not None:
            texts += reasoning.texts
        if calls is HARMONY:
            texts += HARMONY_MARKS
        return cls(
            calls=calls,
            with_tools=with_tools,
            taught=is_taught,
            single=abilities.calls is not None and not abilities.several_calls,
            reasoning=reasoning,
            marks=frozenset(id_ for name, id_ in special_tokens.items() if any(name in t for t in texts)),
            special_tokens=special_tokens,
        )

    def thoughts_after(self, prompt: str) -> Thoughts:
        """Return the state of thoughts where the answer to a prompt begins."""
        if self.calls is HARMONY:
            return "possible" if prompt.rstrip().endswith(PROMPT_END) else "none"
        return "none" if self.reasoning is None else self.reasoning.state_after(prompt)

    def parser(
        self, thoughts: Thoughts = "none", tools: Sequence[Tool] = (), *, required: bool = False
    ) -> "AnswerParser":
        """Return a parser of one answer, which begins in a state of thoughts and may call these tools.

        `required`: it must call one.
        """
        if self.calls is HARMONY and thoughts != "none":
            return HarmonyParser()
        return _MarkedParser(self, thoughts, tools, required)

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        required: bool = False,
        parallel: bool = True,
        text: GrammarSpec | None = None,
        thoughts: Thoughts = "none",
        max_thoughts: int | None = None,
    ) -> GrammarSpec | None:
        """Return the grammar of an answer; None if it may be any text.

        The answer is text, or calls of `tools`, or calls only if they are `required`. Text may precede calls
        if the format has a mark, unless `text` is given: the grammar of an answer without calls. Thoughts
        precede the answer if they have `begun`, or may do so if they are `possible` and a call is required;
        they have `max_thoughts` tokens at most. Raises ToolError for parameters that are no schema, and
        ValidationError for such a `text`.
        """
        if self.calls is HARMONY and thoughts != "none":
            return self._harmony(tools, required, text, max_thoughts)
        is_forced = required or text is not None
        begins = thoughts == "begun" and (is_forced or bool(tools) or max_thoughts is not None)
        may_begin = thoughts == "possible" and (required or (max_thoughts is not None and text is None))
        text_begin = "" if text is None else self.calls.text_begin
        if not (tools or begins or may_begin or text_begin):
            return text
        # Without a mark, a call is told from other JSON by its lexemes, which must be the same then.
        among_json = bool(tools) and not (self.calls.mark or required or text is None)
        excluded = [self.reasoning.begin] if self.reasoning is not None and may_begin else []
        calls = [f"{self._literal(self.calls.mark)} calls"] if tools else []
        if required:
            answer, rules = calls, []
        elif text is not None:
            body = f"{self._literal(text_begin)} {_answer(text, among_json)}".lstrip()
            answer, rules = ["answer", *calls], [f"answer: {body}"]
        else:
            answer, rules = self._free_answer(tools, excluded)
        starts = answer
        if begins or may_begin:
            assert self.reasoning is not None
            begin = self._literal(self.reasoning.begin) if may_begin else ""
            thinking = [f"{begin} thoughts SPACE {alternative}" for alternative in answer]
            starts = answer + thinking if may_begin else thinking
            rules += [r"SPACE: /\s{0,2}/", *self._thoughts(self.reasoning.end, max_thoughts)]
        rules.insert(0, "start: " + " | ".join(starts))
        if tools:
            several = parallel and not self.single
            rules += self.calls.rules(tools, self._literal, several=several, among_json=among_json)
        return GrammarSpec("lark", "\n".join(rules) + "\n")

    def _harmony(
        self, tools: Sequence[Tool], required: bool, text: GrammarSpec | None, max_thoughts: int | None
    ) -> GrammarSpec | None:
        if not tools and text is None and max_thoughts is None:
            return None
        rules = harmony_rules(
            tools,
            self._literal,
            answer=None if text is None else _answer(text, among_json=False),
            required=required,
            bounded=max_thoughts is not None,
        )
        lines = [*rules, *self._thoughts("<|end|>", max_thoughts)]
        return GrammarSpec("lark", "\n".join(lines) + "\n")

    def _free_answer(self, tools: Sequence[Tool], excluded: list[str]) -> tuple[list[str], list[str]]:
        """Return alternatives for an answer of any text, which may precede calls, and their rules.

        Text does not begin with the `excluded`.
        """
        mark = self.calls.mark if tools else ""
        without = [rf"\s*{pattern_of(text)}(?s:.*)" for text in excluded]
        special = self._any_special(mark, *excluded)
        first, rules = "TEXT", [f"TEXT: {_without(_TEXT, *without)}"]
        if tools and not mark:
            first = "FIRST"
            rules.append(f"FIRST: {_without(_TEXT, self.calls.beginning(tools), *without)}")
        rules.append(f"text: {first}? ({special} TEXT?)*" if special else f"text: {first}?")
        if not tools:
            return ["text"], rules
        if not mark:
            return ["text", "calls"], rules
        before = f"(TEXT? {special})*" if special else ""
        if mark in self.special_tokens:
            rules.append(f"before: {before} TEXT? {self._literal(mark)}")
        else:
            rules += [f"before: {before} before_end", f"before_end[lazy]: TEXT? {self._literal(mark)}"]
        return ["text", "before calls"], rules

    def _thoughts(self, end: str, limit: int | None) -> Iterator[str]:
        """Yield rules for thoughts of at most `limit` tokens, and their end."""
        if any(end.startswith(name) for name in self.special_tokens):
            yield f"thoughts: thought? {self._literal(end)}"
            yield f"thought{'' if limit is None else f'[max_tokens={limit}]'}: THOUGHT"
            yield f"THOUGHT: /{_TEXT}/"
        else:
            # Here, the limit counts characters.
            count = "" if limit is None else min(limit, _MAX_COUNT)
            yield f"thoughts[lazy]: /(?s:.{{0,{count}}}){pattern_of(end)}/"

    def _any_special(self, *without: str) -> str:
        """Return an expression for any special token but those that begin these texts; "" for none."""
        others = (
            i for name, i in self.special_tokens.items() if not any(t.startswith(name) for t in without)
        )
        ids = sorted(others)
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


class AnswerParser(Protocol):
    """Reads one answer, in pieces of any size, into thoughts, content and tool calls."""

    @property
    def is_within_arguments(self) -> bool:
        """Whether the arguments of the last call are incomplete."""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next belongs to thoughts, or ends them."""

    def feed(self, text: str, *, last: bool = False) -> AnswerDelta:
        """Take the next piece of the answer, or its `last`; return everything that is now certain."""


class _MarkedParser:
    """Reads an answer whose parts are told by marks: thoughts, then text, then calls."""

    def __init__(
        self, style: AnswerFormat, thoughts: Thoughts, tools: Sequence[Tool], required: bool
    ) -> None:
        self._thoughts = ThoughtsParser.of(style.reasoning, thoughts)
        self._calls: ToolCallParser | None = None
        if style.with_tools or style.calls.text_begin:
            self._calls = style.calls.parser(tools if style.with_tools else (), required=required)

    @property
    def is_within_arguments(self) -> bool:
        """Whether the arguments of the last call are incomplete."""
        return self._calls is not None and self._calls.is_within_arguments

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next belongs to thoughts, or ends them."""
        return self._thoughts.is_thinking

    def feed(self, text: str, *, last: bool = False) -> AnswerDelta:
        """Take the next piece of the answer, or its `last`; return everything that is now certain."""
        thoughts, content = self._thoughts.feed(text)
        if last:
            more, rest = self._thoughts.end()
            thoughts, content = thoughts + more, content + rest
        if self._calls is None:
            return AnswerDelta(thoughts, content)
        parts = self._calls.feed(content) + (self._calls.end() if last else [])
        calls = [part for part in parts if isinstance(part, CallDelta)]
        return AnswerDelta(thoughts, "".join(part for part in parts if isinstance(part, str)), calls)


def _printed(known: Sequence[ToolFormat], prompt: str) -> ToolFormat:
    """Return the format in which a prompt has the call of the probe, at least up to its end; or the first."""
    texts = [(style, style.write([(PROBE, PROBE_ARGUMENTS)])) for style in known]
    found = [style for style, text in texts if text in prompt]
    found += [style for style, text in texts if text.removesuffix(style.tail + style.end) in prompt]
    return (found or list(known))[0]


def _without(pattern: str, *excluded: str) -> str:
    """Return the expression of a terminal that matches a pattern, but none of the excluded ones."""
    return " & ~".join(f"/{part}/" for part in (pattern, *excluded))


def _answer(text: GrammarSpec, among_json: bool) -> str:
    """Return the body of a Lark rule for an answer without calls."""
    try:
        if text.kind == "regex":
            return regex_term(text.source)
        if text.kind == "ebnf":
            return f"%lark {{\n{lark_of(text.source)}\n}}"
        return str(msgspec.structs.replace(text.term, spaced=among_json))
    except GrammarError as error:
        raise ValidationError(f"grammar is not valid: {error}") from error
