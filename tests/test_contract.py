"""contract.tsv lists the ids of TGI's observable behaviour; tests are marked with the ids that they hold.

A line is an id, its subject, and a note: `deviation` where docs/deviations.md has rows of that id, or the
reason why it is not applicable. The ids cover HTTP, requests, answers and chat (sections 1 to 4), the command
line (6), metrics (7) and the request/answer pairs (12). `python -m tests.test_contract` prints the table.
"""

import pytest

from .documented import ROOT, Row, holders_by_contract_id, read_tables
from .test_compat_flags import IMPLEMENTED, IN_VAIN

LINES = [
    (line + "\t\t").split("\t")[:3]
    for line in (ROOT / "tests" / "contract.tsv").read_text("utf-8").splitlines()
]
IDS = [line[0] for line in LINES]
DEVIATING = {name for cells in read_tables(ROOT / "docs" / "deviations.md") for name in Row(*cells).ids}
RANGES = {
    "R1.": [*range(1, 17), *range(20, 28), *range(30, 42), *range(50, 53), *range(60, 66), 70, 71, 72,
            *range(80, 84), *range(90, 95)],
    "D": range(1, 9),
    "V": [*range(1, 14), *range(15, 18), 20, 21, *range(23, 26), *range(30, 38)],
    "R2.": [*range(50, 53), *range(70, 77)],
    "R3.": [10, 11, *range(20, 26), *range(40, 46), *range(50, 60)],
    "C": [*range(1, 9), *range(10, 21), *range(30, 36)],
    "T": range(1, 14),
    "L": range(1, 9),
    "M": range(1, 6),
    "12.": range(1, 11),
}  # fmt: skip
"""The numbers that the list has."""


def test_no_id_is_missing_or_there_twice() -> None:
    assert len(set(IDS)) == len(IDS)
    wanted = {f"{prefix}{number:02d}" if prefix == "V" else f"{prefix}{number}"
              for prefix, numbers in RANGES.items() for number in numbers}  # fmt: skip
    wanted |= {"P-default", "V14a", "V14b", "V14c", "V22a", "V22b", "V22c"}
    assert wanted - set(IDS) == set()


def test_every_flag_of_the_launcher_is_there() -> None:
    of_the_router = {"master-shard-uds-path", "tokenizer-name", "max-image-fetch-size"}
    flags = {*IMPLEMENTED, *IN_VAIN, "help", "version"} - of_the_router
    assert {name for name in IDS if name.startswith("--")} == {f"--{flag}" for flag in flags}


@pytest.mark.parametrize(("name", "subject", "note"), LINES, ids=IDS)
def test_an_id_is_held_by_a_test(name: str, subject: str, note: str) -> None:
    assert subject or name.startswith(("--", "tgi_"))
    assert ("deviation" in note.split()) == (name in DEVIATING)
    applicable = not note.startswith("not applicable: ")
    assert bool(holders_by_contract_id().get(name)) == applicable or note == "deviation"


def test_every_mark_is_an_id_of_the_contract() -> None:
    assert set(holders_by_contract_id()) <= set(IDS)


def test_the_deviations_name_no_id_that_there_is_not() -> None:
    """But for those of what is not listed here: sampling, scheduling, tracing, logs, and adapters (A)."""
    assert {name for name in DEVIATING - set(IDS) if not name.startswith(("S", "Q", "O", "A", "5."))} == set()


if __name__ == "__main__":
    for name, subject, note in LINES:
        print(f"| {name} | {subject} | {note} | {' '.join(holders_by_contract_id().get(name, ()))} |")
