"""docs/reliability.md: the tests that it names are there."""

import re

import pytest

from .documented import ROOT, names_of_tests

PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
ROWS = re.findall(r"^\| ([A-Z]\d) \| (.*) \|$", PAGE, re.MULTILINE)


def test_every_scenario_has_a_row() -> None:
    counts = {"L": 3, "C": 2, "F": 5, "D": 2, "B": 3, "R": 2, "G": 1, "E": 1, "K": 1}
    assert [id_ for id_, _ in ROWS] == [
        f"{kind}{n + 1}" for kind, count in counts.items() for n in range(count)
    ]


@pytest.mark.parametrize(("id_", "row"), ROWS, ids=[id_ for id_, _ in ROWS])
def test_a_scenario_is_played_by_tests_that_exist(id_: str, row: str) -> None:
    tests = re.findall(r"`([^`]+)::([^`]+)`", row)
    assert tests or "| none; " in row, id_
    for file, name in tests:
        assert name in names_of_tests(file), f"{file}::{name}"
