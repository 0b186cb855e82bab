"""Requests that schemathesis makes of our own OpenAPI document, right ones and wrong ones: B3."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REQUESTS = 5000
LEFT_OUT = "positive_data_acceptance,negative_data_rejection"
"""Checks that cannot hold: what may be asked for together no schema tells, and TGI ignores unknown fields."""
SECONDS = 600
"""Time for one request: 127 answers to one take a simulated card longer than the tool's ten seconds."""
GOOD = {"inputs": "What is Deep Learning?", "parameters": {"max_new_tokens": 8}}


def prepared(document: dict[str, Any]) -> dict[str, Any]:
    """Without what keeps schemathesis from the point: events are no one JSON text, and most deadlines that
    it would invent pass before anything else can happen."""
    for operations in document["paths"].values():
        for operation in operations.values():
            named = operation.get("parameters", [])
            operation["parameters"] = [one for one in named if one["name"] != "x-request-timeout"]
            for response in operation["responses"].values():
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)
    return document


def test_5000_requests_get_documented_answers_and_leave_the_server_as_it_was(
    start: Any, tmp_path: Path
) -> None:
    server = start(model_id="", max_total_tokens=64).wait_ready()
    before = server.post("/generate", GOOD)
    document = prepared(json.loads(server.get("/api-doc/openapi.json")[1]))
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", "openapi.json"]
    command += ["--url", f"http://127.0.0.1:{server.port}"]
    command += ["--checks", "all", "--exclude-checks", LEFT_OUT, "--phases", "examples,coverage,fuzzing"]
    command += ["--generation-deterministic", "--max-examples", "20", "--workers", "2", "--no-shrink"]
    command += ["--request-timeout", str(SECONDS), "--max-response-time", str(SECONDS)]
    command += ["--report", "json", "--report-json-path", "report.json", "--no-color"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["test_cases"]["generated"] >= REQUESTS
    assert report["operations"]["tested"] == sum(map(len, document["paths"].values()))
    assert server.post("/generate", GOOD) == before
    assert server.metric("tgi_batch_current_size") == 0
    assert server.metric("tgi_request_success") > 200
    assert " ERROR " not in server.output()
