"""The recordings of first hours show commands that the documentation has."""

import importlib.util
from typing import Any

import pytest

from .documented import ROOT

spec = importlib.util.spec_from_file_location("record", ROOT / "release" / "record.py")
assert spec is not None
assert spec.loader is not None
record: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)


@pytest.mark.parametrize("name", record.STEPS)
def test_a_recording_is_of_the_commands_of_the_documentation(name: str) -> None:
    shown = (ROOT / "docs" / "recordings" / f"{name}.md").read_text("utf-8")

    for step in record.STEPS[name]:
        assert step.text() in shown, f"python release/record.py {name}"


def test_commands_of_several_lines_are_whole() -> None:
    block = "cat > a <<'END'\nx: 1\nEND\ncurl b \\\n  -d '{\"a\":\n1}'\nls\n"

    assert list(record.commands(block)) == [
        "cat > a <<'END'\nx: 1\nEND",
        "curl b \\\n  -d '{\"a\":\n1}'",
        "ls",
    ]
