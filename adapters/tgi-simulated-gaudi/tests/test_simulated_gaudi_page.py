"""README.md describes the rules as the code does, names a test for each, and its example runs."""

import copy
import re
from pathlib import Path

import pytest
from tgi_simulated_gaudi import RULES, GaudiRuleError, uninstall
from tgi_simulated_gaudi.rules import Ledger

PAGE = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
TESTS = "\n".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_simulated_gaudi*.py")))


def rows():
    return [row.strip("|").split(" | ") for row in PAGE.splitlines() if re.match(r"\| S\d+ \|", row)]


def test_every_rule_is_described_as_the_code_describes_it():
    described = [[cell.strip() for cell in row[:5]] for row in rows()]
    wanted = [[rule.id, rule.title, rule.why, rule.detected, rule.remedy] for rule in RULES.values()]
    assert described == wanted
    assert list(RULES) == [f"S{number}" for number in range(1, 32)]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_names_its_tests(rule):
    (row,) = [row for row in rows() if row[0].strip() == rule]
    marked = rf'^@pytest.mark.rule\("{rule}"\)\n(?:[@ )].*\n)*def (test_\w+)'
    assert re.findall(r"`(\w+)`", row[5]) == re.findall(marked, TESTS, re.M) != []


def test_the_example_runs_and_its_mistake_has_the_message_of_the_page():
    program, mistake = re.findall(r"```python\n(.*?)```", PAGE, re.S)[:2]
    printed = []
    names = {"print": lambda *values: printed.append(copy.deepcopy(values))}
    try:
        exec(compile(program, "program.py", "exec"), names)
        with pytest.raises(GaudiRuleError) as raised:
            exec(compile(mistake, "program.py", "exec"), names)
    finally:
        uninstall()
    assert printed[0] == ([],)
    assert printed[1][0] == 1
    quoted = " ".join(line.removeprefix("> ") for line in PAGE.splitlines() if line.startswith("> "))
    assert re.fullmatch(re.escape(quoted).replace("…", ".*"), str(raised.value)), raised.value


def test_a_budget_counts_before_it_raises():
    ledger = Ledger()
    ledger.allow("S14", 2)
    for _ in range(2):
        ledger.violate("S14", "op", "detail")
    with pytest.raises(
        RuntimeError, match=r"S14 .*: detail \[op at .*test_simulated_gaudi_page.py:\d+\]\. To do: convert"
    ):
        ledger.violate("S14", "op", "detail")
    assert [violation.rule for violation in ledger.violations] == ["S14"] * 3
    with pytest.raises(KeyError, match="S99"):
        ledger.allow("S99")
