"""benchmarks/schemas.py tells what becomes of schemas, each of them here written for one outcome."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .benchmark_scripts import BENCHMARKS

OPEN = {"a": 1, "b": 2}
CASES: dict[str, tuple[Any, list[tuple[bool, Any]]]] = {
    "passed": ({"type": "object", "required": ["a"]}, [(True, {"a": 1}), (False, {})]),
    "refused": ({"pattern": r"\bx"}, [(True, "x")]),
    "closed": ({"properties": {"a": {}}}, [(True, OPEN)]),
    "order": ({"properties": {"b": {}, "a": {}}}, [(True, OPEN)]),
    "no-tests": ({"type": "null"}, []),
}


def outcomes(folder: Path, *options: str) -> dict[str, str]:
    results = folder.parent / "results.jsonl"
    command = [sys.executable, BENCHMARKS / "schemas.py", folder, "--json", results, *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.startswith("passed")
    lines = map(json.loads, results.read_text().splitlines())
    return {line["file"].removesuffix(".json"): line["outcome"] for line in lines}


def test_outcomes(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, (schema, tests) in CASES.items():
        case = {"schema": schema, "tests": [{"valid": valid, "data": data} for valid, data in tests]}
        (folder / f"{name}.json").write_text(json.dumps(case))
    strict = {"passed": "passed", "refused": "refused", "closed": "rejected", "order": "rejected"}
    assert outcomes(folder) == strict
    assert outcomes(folder, "--lenient") == dict.fromkeys(strict, "passed")
