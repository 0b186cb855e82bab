"""docs/gaudi-review.md names rules and tests that there are."""

import re
from pathlib import Path

from tgi_simulated_gaudi.rules import RULES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/gaudi-review.md").read_text("utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][2:]
SOURCES = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("adapters/*/tests/*.py")]


def test_every_finding_has_what_holds_it_and_what_became_of_it() -> None:
    written = "".join(path.read_text("utf-8") for path in SOURCES)
    for finding, holds, became in ROWS:
        assert became, finding
        named = re.findall(r"`(test_\w+)`", holds)
        rules = re.findall(r"\bS\d+\b", holds)
        assert named or rules or holds.startswith(("none", "`make", "image: ")), finding
        assert set(rules) <= set(RULES), finding
        for test in named:
            assert f"def {test}(" in written, test
