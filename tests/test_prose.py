"""Docstrings begin with a verb or a noun phrase, and use the words of today."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("tgi/**/*.py", "adapters/*/tgi_*/**/*.py", "kernels/*/tgi_*/**/*.py")
BEGINNINGS = re.compile(r"(What|Of|As|How|Why|Which|Where|When|That|From|For|In|With|On|At|If|So) ")
WORDS = re.compile(
    r"\b(so many|whatever|whosoever|shall|heeds?|thus|hence|as yet|for want of)\b", re.IGNORECASE
)


def docstrings() -> Iterator[tuple[str, str]]:
    for file in sorted(file for pattern in FILES for file in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
                continue
            if isinstance(node.value.value, str):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value.value.strip()


def test_beginnings_of_docstrings() -> None:
    assert [f"{place}: {text}" for place, text in docstrings() if BEGINNINGS.match(text)] == []


def test_words_of_docstrings() -> None:
    found = [(place, WORDS.findall(text)) for place, text in docstrings()]
    assert [one for one in found if one[1]] == []
    assert len(found) > 5000, "docstrings are found"
