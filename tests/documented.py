"""Reads what documentation says about tests, and which tests there are."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
    return frozenset(node.name for node in _tests(tree))


@functools.cache
def holders_by_contract_id() -> Mapping[str, Sequence[str]]:
    """Return "file::test" of every test marked with `pytest.mark.contract`, by the ids it is marked with."""
    held = defaultdict(list)
    for folder in ("tests", "integration-tests", "adapters"):
        for path in sorted((ROOT / folder).rglob("test_*.py")):
            for node in _tests(ast.parse(path.read_text("utf-8"))):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.contract":
                        for id_ in mark.args:
                            held[ast.literal_eval(id_)].append(f"{path.relative_to(ROOT)}::{node.name}")
    return held


def _tests(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node for node in functions if node.name.startswith("test_")]


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
