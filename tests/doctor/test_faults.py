"""Each fault in docs/doctor.md is planted, and the doctor says of it what the page says."""

from pathlib import Path

import pytest

from .faults import FAULTS

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
LINES = [
    line.strip("| ").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")
]
ROWS = {row[0]: row[1:] for row in LINES if len(row) == 5 and row[2] in ("warn", "fail")}


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_is_reported_with_advice(what: str, tmp_path: Path) -> None:
    found = FAULTS[what](tmp_path)
    assert found.state != "ok"
    assert [found.name, found.state, found.found, found.advice] == ROWS[what]


def test_the_page_lists_exactly_these_faults() -> None:
    assert list(ROWS) == list(FAULTS)
