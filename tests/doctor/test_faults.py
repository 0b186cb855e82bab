"""docs/doctor.md lists faults with what the doctor says of them: each is planted, and it says so."""

from pathlib import Path

import pytest

from .faults import FAULTS

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
LINES = [
    line.strip("| ").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")
]
ROWS = {row[0]: row[1:] for row in LINES if len(row) == 5 and row[2] in ("warn", "fail")}


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_is_told_with_what_to_do(what: str, tmp_path: Path) -> None:
    found = FAULTS[what](tmp_path)
    assert found.state != "ok"
    assert [found.name, found.state, found.found, found.advice] == ROWS[what]


def test_the_page_lists_these_faults_only() -> None:
    assert list(ROWS) == list(FAULTS)
