"""Reads what documentation says about tests, and which tests there are."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]


@functools.cache
def names_of_tests(file: str) -> frozenset[str]:
    """The test functions of a file, by its path below the repository's root; none where there is no file."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text("utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def read_tables(page: Path) -> Iterator[list[str]]:
    """The cells of every row of every table, but for heads."""
    lines = page.read_text("utf-8").splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not line.startswith("| ---") and not following.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def _ids(cell: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("`") for part in cell.split(","))


def _names(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


@attrs.frozen
class Row:
    """One deviation."""

    ids: tuple[str, ...] = attrs.field(converter=_ids)
    tgi: str
    here: str
    why: str
    tests: tuple[str, ...] = attrs.field(converter=_names)
