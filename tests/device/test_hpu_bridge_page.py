"""docs/hpu-bridge-calls.md lists the calls into habana_frameworks that the code makes, and no others."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = sorted((ROOT / "tgi/device/hpu").glob("*.py"))
METHODS = {
    "wait_stream": "Stream.wait_stream",
    "wait_event": "Stream.wait_event",
    "record": "Event.record",
    "synchronize": "Event.synchronize",
    "stats": "Metric.stats",
}


def calls_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("habana_frameworks"):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("habana_frameworks"))
        elif isinstance(node, ast.Constant) and re.fullmatch(r"habana_frameworks[\w.]+", str(node.value)):
            yield node.value
        elif isinstance(node, ast.Constant) and re.fullmatch(r"hpu_\w+", str(node.value)):
            known = str(node.value)
            yield known if known == "hpu_backend" else f"habana_frameworks.torch.core.{known}"
        elif isinstance(node, ast.Attribute):
            parent = ast.unparse(node.value)
            if parent.startswith("torch.ops.hpu"):
                yield f"{parent}.{node.attr}"
            elif parent == "hpu" or parent.endswith(".hpu"):
                yield f"torch.hpu.{node.attr}"
            elif parent == "core":
                yield f"habana_frameworks.torch.core.{node.attr}"
            elif node.attr in METHODS:
                yield METHODS[node.attr]


def test_the_page_lists_every_call_and_no_other():
    assert len(CODE) >= 4
    made = {call for file in CODE for call in calls_in(ast.parse(file.read_text()))}
    page = (ROOT / "docs/hpu-bridge-calls.md").read_text()
    table = page.split("| --- |", 1)[1].split("\n\n", 1)[0]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == made


def test_nothing_else_imports_the_bridge():
    for file in (ROOT / "tgi").rglob("*.py"):
        if file not in CODE:
            assert "import habana_frameworks" not in file.read_text(), file
            assert "from habana_frameworks" not in file.read_text(), file
