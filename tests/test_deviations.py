"""docs/deviations.md: every row names tests that show it true, and they are there.

Whether a test shows its row is for the reader; that it runs is for the suite.
"""

import pytest

from .documented import ROOT, Row, names_of_tests, read_tables

ROWS = [Row(*cells) for cells in read_tables(ROOT / "docs" / "deviations.md")]


def test_the_tables_are_read_whole() -> None:
    page = (ROOT / "docs" / "deviations.md").read_text("utf-8")
    assert len(ROWS) > 100
    assert len(ROWS) == sum(line.startswith("| ") for line in page.splitlines()) - 2 * page.count("| --- |\n")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.ids} {row.here}"[:60])
def test_a_row_is_shown_by_tests_that_exist(row: Row) -> None:
    assert row.tgi
    assert row.here
    assert row.why in ("bug", "OpenAI", "more", "sane")
    assert row.tests
    for name in row.tests:
        file, _, function = name.partition("::")
        assert function in names_of_tests(file), name


def test_no_row_is_there_twice() -> None:
    assert len({(row.ids, row.tgi) for row in ROWS}) == len(ROWS)
