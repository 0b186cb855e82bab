"""Docstrings begin with a verb or a noun phrase; prose uses the words of today and says who does what."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("tgi/**/*.py", "adapters/*/tgi_*/**/*.py", "kernels/*/tgi_*/**/*.py")
BEGINNINGS = re.compile(r"(What|Of|As|How|Why|Which|Where|When|That|From|For|In|With|On|At|If|So) ")
PAGES = ("*.md", "docs/*.md", "adapters/*.md", "adapters/*/*.md", "kernels/*/*.md", "benchmarks/*.md")
CODE = re.compile(r"```.*?```|``.*?``|`[^`]*`", re.DOTALL)
EMPTY_SUBJECT = re.compile(r"\bThere (?:is|are|was|were)\b")
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


def comments() -> Iterator[tuple[str, str]]:
    for file in sorted(file for pattern in FILES for file in ROOT.glob(pattern)):
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
            if token.type == tokenize.COMMENT:
                yield f"{file.relative_to(ROOT)}:{token.start[0]}", token.string


def pages() -> Iterator[tuple[str, str]]:
    """Yield the prose of the documentation, without its code."""
    for file in sorted(file for pattern in PAGES for file in ROOT.glob(pattern)):
        yield str(file.relative_to(ROOT)), CODE.sub("", file.read_text("utf-8"))


def test_beginnings_of_docstrings() -> None:
    assert [f"{place}: {text}" for place, text in docstrings() if BEGINNINGS.match(text)] == []


def test_words_of_docstrings_and_comments() -> None:
    found = [(place, WORDS.findall(text)) for place, text in (*docstrings(), *comments())]
    assert [one for one in found if one[1]] == []
    assert len(found) > 5500, "docstrings and comments are found"


def test_no_sentence_begins_with_there_is() -> None:
    prose = (*docstrings(), *comments(), *pages())
    assert [place for place, text in prose if EMPTY_SUBJECT.search(text)] == []
