"""Trials of a chat template with made-up messages, which show what it prints better than its source."""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any, Literal

import attrs

_PROBE, _TEXT = "probe-of-the-content", "probe-of-a-text"
"""Contents of the messages with which a template is tried out."""
_KEY, _VALUE, _OTHER = "probe_of_a_key", "probe-of-a-value", "probe-of-another"
_CALL_ID, _OTHER_ID = "a1b2c3d4e", "f5g6h7i8j"
_NAME = "probe_of_a_name"
TOOL = {"name": "lookup", "description": "Look it up", "parameters": {"type": "object", "properties": {}}}
"""Function that a template is tried out with."""

_THOUGHTS = {"thinking": "Hm.", "reasoning_content": "Hm."}
"""Thoughts of an answer, beside which some templates refuse a text (gpt-oss)."""
_Form = Literal["objects", "texts"]
_NoContent = Literal["absent", "empty", "none", "part"]
_FORMS: tuple[_Form, ...] = ("objects", "texts")
NO_CONTENT: dict[_NoContent, dict[str, Any]] = {
    "absent": {},
    "empty": {"content": ""},
    "none": {"content": None},
    "part": {"content": [{"type": "text", "text": ""}]},
}


@attrs.frozen
class Abilities:
    """Messages that a template prints."""

    parts: bool = False
    """Whether it prints the content of a message only if that is a list of parts."""
    joins_parts: frozenset[str] = frozenset()
    """Roles whose contents in several parts the template joins in its own way."""
    system: Literal["anywhere", "first"] | None = "anywhere"
    """Places where it prints messages of the role `system`."""
    developer: bool = False
    """Whether it prints messages of the role `developer`."""
    tools_in_system: bool = False
    """Whether it prints the field `tools` of the first message, of the role `system`."""
    turns: bool = False
    """Whether it prints messages of users only if an answer stands between them."""
    calls: _Form | None = None
    """Form of the arguments with which it prints calls: an object or JSON text. None: it prints no calls."""
    several_calls: bool = False
    """Whether it prints every call of a message."""
    no_content: _NoContent = "absent"
    """Form of the content of a message that has calls only: none, "", null, or a part with an empty text.

    With a part, results of calls are parts, too.
    """
    text_of_calls: Literal["beside", "before"] | None = None
    """Whether it prints a text beside calls, in a message before them only, or at neither place."""
    names_in_ids: bool = False
    """Whether it prints the id of a call in place of the function's name."""
    tool_role: bool = False
    """Whether it prints messages of the role `tool` that answer no call."""
    printed_call: str = attrs.field(default="", eq=False, repr=False)
    """Prompt with a call of the function `PROBE`, whose arguments are `PROBE_ARGUMENTS`."""


PROBE, PROBE_ARGUMENTS = _NAME, json.dumps({_KEY: _VALUE})
"""Name and arguments of the call in `Abilities.printed_call`."""


def try_out(render: Callable[[list[dict[str, Any]]], str]) -> Abilities:
    """Find the abilities of a template; `render` returns its prompt, or "" if it refuses the messages."""
    trial = _Trial(render)
    question = {"role": "user", "content": _PROBE}
    if _PROBE not in trial.prompt(question):
        trial.parts = True
        trial.parts = _PROBE in trial.prompt(question)
    abilities = trial.roles()
    for form, kind in itertools.product(_FORMS, NO_CONTENT):
        if (known := trial.calls(abilities, form, kind)) is not None:
            return known
    return abilities


@attrs.define
class _Trial:
    _render: Callable[[list[dict[str, Any]]], str]
    parts: bool = False

    def prompt(self, *messages: dict[str, Any]) -> str:
        """Return the prompt of messages, whose texts become parts if `parts` is set."""
        given = []
        for message in messages:
            text = message.get("content")
            if self.parts and isinstance(text, str):
                message = message | {"content": [{"type": "text", "text": text}]}
            given.append(message)
        return self._render(given)

    def roles(self) -> Abilities:
        """Return the abilities that do not concern calls."""
        ask, probe = ({"role": "user", "content": text} for text in ("What?", _PROBE))
        wait = {"role": "assistant", "content": "Wait."}
        first, later = ({"role": "system", "content": text} for text in (_TEXT, _PROBE))
        system: Literal["anywhere", "first"] | None = None
        if _TEXT in self.prompt(first, ask):
            text = self.prompt(first, ask, wait, later, ask)
            system = "anywhere" if _TEXT in text and _PROBE in text else "first"
        return Abilities(
            self.parts,
            frozenset(role for role in ("system", "user", "assistant") if self._joins(role)),
            system=system,
            developer=_PROBE in self.prompt({"role": "developer", "content": _PROBE}, ask),
            tools_in_system=_PROBE in self.prompt(first | {"tools": _PROBE}, ask),
            turns=_PROBE in self.prompt(ask, wait, probe) and _PROBE not in self.prompt(probe, ask),
            tool_role=_PROBE in self.prompt(ask, wait, _result(_CALL_ID)),
        )

    def _joins(self, role: str) -> bool:
        """Return whether the content of a role may be several parts, of which the texts alone are printed."""
        first, later = {"type": "text", "text": _TEXT}, {"type": "text", "text": _PROBE}
        before = [] if role != "assistant" else [{"role": "user", "content": "What?"}]
        after = [] if role == "user" else [{"role": "user", "content": "What?"}]
        text = self.prompt(*before, {"role": role, "content": [first, later]}, *after)
        printed = re.search(f"{_TEXT}(.*){_PROBE}", text, re.DOTALL)
        return printed is not None and "text" not in printed[1]

    def calls(self, abilities: Abilities, form: _Form, kind: _NoContent) -> Abilities | None:
        """Return the abilities with those that concern calls; None if the template does not print them so."""
        ask, wait, say = (
            {"role": role, "content": text}
            for role, text in (("user", "What?"), ("assistant", "Wait."), ("assistant", _TEXT))
        )
        parts = kind == "part"
        call, other, result = (
            _call(_CALL_ID, _VALUE, form),
            _call(_OTHER_ID, _OTHER, form),
            _result(_CALL_ID, parts),
        )
        message = {"role": "assistant", **NO_CONTENT[kind], "tool_calls": [call]}
        text = self.prompt(ask, message, result)
        if not (_PROBE in text and _prints_arguments(text, form)):
            return None
        both = self.prompt(ask, message | {"tool_calls": [call, other]}, result, _result(_OTHER_ID, parts))
        beside = self.prompt(ask, message | say | _THOUGHTS, result)
        before = self.prompt(ask, say, message, result, wait, ask)
        head = text.partition(_KEY)[0]
        return attrs.evolve(
            abilities,
            calls=form,
            several_calls=_OTHER in both,
            no_content=kind,
            text_of_calls="beside" if _shows_all(beside) else "before" if _shows_all(before) else None,
            names_in_ids=_CALL_ID in head and _NAME not in head,
            printed_call=text,
        )


def _call(id_: str, value: str, form: _Form) -> dict[str, Any]:
    arguments = {_KEY: value}
    given = arguments if form == "objects" else json.dumps(arguments)
    return {"id": id_, "type": "function", "function": {"name": _NAME, "arguments": given}}


def _result(id_: str, parts: bool = False) -> dict[str, Any]:
    content = [{"type": "text", "text": _PROBE}] if parts else _PROBE
    return {"role": "tool", "tool_call_id": id_, "name": _NAME, "content": content}


def _prints_arguments(text: str, form: _Form) -> bool:
    """Return whether a text has the arguments of the probe, written in a way that a model may have learnt.

    A dict as Python prints it is not, nor is JSON text within JSON.
    """
    arguments = {_KEY: _VALUE}
    if form == "texts":
        return json.dumps(arguments) in text
    escaped = json.dumps(_KEY).replace('"', '\\"')
    return _KEY in text and _VALUE in text and str(arguments) not in text and escaped not in text


def _shows_all(text: str) -> bool:
    return _TEXT in text and _VALUE in text and _PROBE in text
