"""Chat templates, which turn messages into the prompt that a model was trained on.

Prompts are those of transformers' `apply_chat_template`, errors those of TGI. A template is a program that
comes with the model; it runs in jinja2's sandbox.
"""

import functools
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tgi.errors import TemplateError

from .abilities import TOOL, Abilities, try_out
from .tokenizer_files import NAMED_TOKENS, TokenizerError, read_json, token_text

logger = logging.getLogger(__name__)

DEFAULT = "default"
WITH_TOOLS = "tool_use"
"""Names of the two templates that are used if a model has several."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields in which clients send back the reasoning of a model, and templates read it."""
_MARKER = "[-the-answer-goes-on-here-]"
"""Text appended to a message to find its end in the rendered prompt."""


@attrs.frozen
class _Template:
    source: str
    compiled: jinja2.Template | None
    """The program; None if the source does not compile."""
    problem: str = ""
    """The reason why the source does not compile."""
    variables: frozenset[str] = frozenset()
    """Names of the variables that the template reads."""


class ChatTemplates:
    """The chat templates of one model. Safe to use from several threads."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Compile templates, given by name; `special_tokens` are variables of every template."""
        self._templates = {name: _compile(source) for name, source in sources.items()}
        self._special_tokens = dict(special_tokens)
        self._abilities = {with_tools: self._try_out(with_tools) for with_tools in (False, True)}

    @classmethod
    def from_folder(
        cls, folder: Path, *, tokenizer_config: Path | None = None, template: Path | None = None
    ) -> "ChatTemplates":
        """Read the templates of a model's folder, or those in the files that the operator names.

        `template` replaces all templates. `tokenizer_config` is read in place of tokenizer_config.json; a
        template in it precedes those of the folder. A missing template, or one that does not compile, is an
        error of `render` only. Raises OSError if `template` or `tokenizer_config` cannot be read.
        """
        settings = _read_json(tokenizer_config or folder / "tokenizer_config.json", tokenizer_config is None)
        tokens = _read_json(folder / "special_tokens_map.json") | {
            name: token for name, token in settings.items() if token is not None
        }
        if template is not None:
            sources = {DEFAULT: template.read_text("utf-8")}
        else:
            jinja = folder / "chat_template.jinja"
            places = (
                settings if tokenizer_config is not None else {},
                {"chat_template": jinja.read_text("utf-8")} if jinja.is_file() else {},
                _read_json(folder / "chat_template.json"),
                settings,
                _read_json(folder / "processor_config.json"),
            )
            sources = {
                path.stem: path.read_text("utf-8")
                for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
            }
            sources |= next(filter(None, (_named(place.get("chat_template")) for place in places)), {})
        return cls(sources, {name: text for name in NAMED_TOKENS if (text := token_text(tokens.get(name)))})

    def knows_tools(self) -> bool:
        """Return whether the template for requests with tools reads them (T6)."""
        template = self._select(with_tools=True)
        return template is not None and (
            not template.variables.isdisjoint(("tools", "functions")) or self._abilities[True].tools_in_system
        )

    def source(self, with_tools: bool) -> str | None:
        """Return the source of the template for requests with or without tools."""
        template = self._select(with_tools)
        return None if template is None else template.source

    def abilities(self, with_tools: bool) -> Abilities:
        """Return the abilities of the template for requests with or without tools."""
        return self._abilities[with_tools]

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        *,
        continues: bool | None = None,
        more: bool = True,
    ) -> str:
        """Return the prompt, to be tokenised without special tokens. Raises TemplateError.

        The prompt ends where the model continues: after the header of a new message of the assistant, or, if
        the last message is the assistant's, after its content without trailing spaces (tgi-behaviour 4.4).
        `continues` says whether the last message is continued, of any role. Without `more`, no header
        of a new message follows. `extra` are further variables of the template; they may replace special
        tokens.
        """
        kept = {"content"} if self.abilities(tools is not None).no_content == "none" else set()
        messages = [
            _with_reasoning({k: v for k, v in m.items() if v is not None or k in kept}) for m in messages
        ]
        last = messages[-1] if messages else {}
        is_continued = more and _is_answer(last) if continues is None else continues
        marked = _mark_last(messages) if is_continued else None
        if marked is not None:
            text, marker, _ = self._render(marked, tools, extra, more=False).rpartition(_MARKER)
            if marker:
                return text.rstrip()
        if continues and not _is_empty_answer(last):
            raise TemplateError("the last message cannot be continued")
        text = self._render(messages, tools, extra, more=more or is_continued)
        # TGI finds an empty answer that is to be continued at the end of the prompt.
        return text.rstrip() if is_continued and _is_empty_answer(last) else text

    def _select(self, with_tools: bool) -> _Template | None:
        special = with_tools and WITH_TOOLS in self._templates
        return self._templates.get(WITH_TOOLS if special else DEFAULT)

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        extra: Mapping[str, Any] | None,
        *,
        more: bool,
    ) -> str:
        template = self._select(tools is not None)
        if template is None:
            raise TemplateError("template not found")
        if template.compiled is None:
            raise TemplateError(template.problem)
        variables = {
            "documents": None,
            "add_generation_prompt": more,
            **(_functions(tools) if "functions" in template.variables else {}),
            **self._special_tokens,
            **(extra or {}),
        }
        try:
            return template.compiled.render(variables | {"messages": messages, "tools": tools})
        except Exception as error:  # a template is somebody else's program and may raise anything
            raise TemplateError(_describe(error)) from error

    def _try_out(self, with_tools: bool) -> Abilities:
        def printed(messages: list[dict[str, Any]]) -> str:
            tools = [{"type": "function", "function": TOOL}] if with_tools else None
            try:
                return self._render(messages, tools, None, more=True)
            except TemplateError:
                return ""

        return try_out(printed)


def _functions(tools: list[dict[str, Any]] | None) -> dict[str, str]:
    """Return the variables of Firefunction's template, which its own documentation fills in so."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"functions": json.dumps(tools, indent=4, ensure_ascii=False) if tools else "", "datetime": now}


def _named(value: object) -> dict[str, str]:
    """Return templates by name from a configuration's value: one, a list of named ones, or an object (C4)."""
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(name, str) and isinstance(text, str)}


def _read_json(path: Path, optional: bool = True) -> dict[str, Any]:
    """Return the object in a file; {} if it holds none, with a warning if it is not JSON."""
    try:
        return read_json(path, optional)
    except TokenizerError as error:
        logger.warning("%s", error)
        return {}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    thoughts = next((message[name] for name in _REASONING if name in message), None)
    if thoughts is None:
        return message
    return dict.fromkeys(_REASONING, thoughts) | message | {"reasoning_content": thoughts}


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "assistant" and not message.get("tool_calls")


def _is_empty_answer(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return _is_answer(message) and isinstance(content, str) and not content.strip()


def _mark_last(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the messages with a marker after the last one; None if that has no text to be continued."""
    *before, last = messages
    content = last.get("content")
    if isinstance(content, str) and content.strip():
        return [*before, last | {"content": content + _MARKER}]
    if isinstance(content, list):
        for index in reversed(range(len(content))):
            text = content[index].get("text")
            if text is not None and text.strip():
                part = content[index] | {"text": text + _MARKER}
                return [*before, last | {"content": [*content[:index], part, *content[index + 1 :]]}]
    return None


class _Generation(Extension):
    """The block `{% generation %}`, by which templates mark the assistant's text; prints its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """`namespace()` without private attributes, which are a way out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"the attribute {name} of a namespace is unsafe")


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace jinja2's `tojson`, which escapes HTML; the parameters are those that templates use."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
)
_ENVIRONMENT.filters["tojson"] = _to_json
_ENVIRONMENT.globals.update(
    raise_exception=_raise_exception,
    strftime_now=lambda form: datetime.now().strftime(form),
    namespace=_Namespace,
)


@functools.lru_cache(maxsize=128)  # several engines of a process may have the same templates
def _compile(source: str) -> _Template:
    try:
        tree = _ENVIRONMENT.parse(source)
        variables = meta.find_undeclared_variables(tree)
        return _Template(source, _ENVIRONMENT.from_string(tree), variables=frozenset(variables))
    except Exception as error:  # Python's own compiler may refuse what jinja2 makes of a template
        problem = _describe(error)
        logger.warning("The chat template cannot be used: %s", problem)
        return _Template(source, None, problem)


def _describe(error: Exception) -> str:
    """Return TGI's text of an error (V35): its kind, detail and place; without detail if undefined."""
    place = f"(in <string>:{_line_of(error)})"
    detail = str(error.message if isinstance(error, jinja2.TemplateSyntaxError) else error)
    if isinstance(error, jinja2.UndefinedError):
        return f"undefined value {place}"
    # Errors of raise_exception count as syntax errors, too.
    if isinstance(error, jinja2.TemplateSyntaxError) or type(error) is jinja2.TemplateError:
        return f"syntax error: {detail} {place}"
    return f"invalid operation: {detail} {place}"


def _line_of(error: Exception) -> int:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line, step = 1, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    return line
