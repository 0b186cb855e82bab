"""Grammars of llama.cpp (GBNF) as Lark for llguidance.

The rules of GBNF are about characters. Where a text may be split into lexemes in several ways, llguidance
takes the longest ones, so each character is a lexeme of its own here.
"""

import re
from collections.abc import Iterator, Mapping

from .json_schema import GrammarError

_TOKEN = re.compile(
    r"""
    (?P<space>(?:\s|\#[^\n]*)+)
    |(?P<rule>[A-Za-z][\w-]*)\s*::=
    |(?P<name>[A-Za-z][\w-]*)
    |"(?P<literal>(?:\\.|[^"\\])*)"
    |\[(?P<invert>\^?)(?P<set>(?:\\.|[^\]\\])*)\]
    |(?P<any>\.)
    |(?P<repeat>\{\d*,?\d*\})
    |(?P<sign>[()|*+?])
    """,
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(
    r"\\(?P<code>x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})|\\(?P<escaped>.)|(?P<letter>.)", re.DOTALL
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_START = re.compile(r"^\s*[A-Za-z][\w-]*\s*::=", re.MULTILINE)


def is_gbnf(source: str) -> bool:
    """Return whether a grammar is in GBNF; otherwise it is in Lark."""
    return _START.search(source) is not None


def lark_of_gbnf(source: str) -> str:
    """Return a grammar in Lark. Raises GrammarError."""
    rules = [match["rule"] for match in _tokens(source) if match.lastgroup == "rule"]
    names = {name: "start" if name == "root" else f"rule_{index}" for index, name in enumerate(rules)}
    if "root" not in names:
        raise GrammarError("the grammar has no rule `root`")
    parts: list[str] = []
    for match in _tokens(source):
        text = _translated(match, names)
        if parts and parts[-1].endswith((":", "|", "(")) and (text in ("|", ")") or text.endswith(":")):
            parts.append('""')
        parts.append(text)
    if parts[-1].endswith((":", "|")):
        parts.append('""')
    return " ".join(parts) + "\n"


def _tokens(source: str) -> Iterator[re.Match[str]]:
    place = 0
    while place < len(source):
        match = _TOKEN.match(source, place)
        if match is None:
            line = source.count("\n", 0, place) + 1
            raise GrammarError(f"line {line} of the grammar: {source[place : place + 20]!r} makes no sense")
        place = match.end()
        if match.lastgroup != "space":
            yield match


def _translated(match: re.Match[str], names: Mapping[str, str]) -> str:
    text = str(match[str(match.lastgroup)])
    match match.lastgroup:
        case "rule":
            return f"\n{names[text]}:"
        case "name" if text not in names:
            raise GrammarError(f"the grammar has no rule `{text}`")
        case "name":
            return names[text]
        case "literal":
            return f"({' '.join(f'/{one}/' for one in _members(text))})" if text else '""'
        case "set":
            return f"/[{match['invert']}{''.join(_members(text))}]/"
        case "any":
            return "/(?s:.)/"
        case _:
            return text


def _members(text: str) -> Iterator[str]:
    """Yield the characters of a text, or of a class with its ranges, for Rust's regular expressions."""
    for match in _CHARACTER.finditer(text):
        code, escaped, letter = match["code"], match["escaped"], match["letter"]
        if code is not None:
            letter = chr(int(code[1:], 16))
        elif escaped is not None:
            letter = _ESCAPES.get(escaped, escaped)
        elif letter == "-":
            yield "-"
            continue
        yield letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}"
