"""Frameworks for agents and structured output; `make test-agents` installs and tries them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PYTHON = Path(sys.prefix) / "agents" / "bin" / "python"
ANSWER = "A violin is a bowed stringed instrument that is the highest member of the violin family."
"""The demo model's greedy answer, which integration-tests/clients compares with transformers."""
TEXTS = "text", "streamed", "responses", "pipeline", "openai text", "vllm text"
CHOICES = {"violin", "viola", "define"}
NAMES = [
    "pydantic-ai-slim",
    "openai-agents",
    "langchain-openai",
    "instructor",
    "outlines",
    "smolagents",
    "haystack-ai",
]
WORDS = (
    "word", "called", "TOOLS", "JSON_SCHEMA",
    "openai word", "vllm word", "vllm grammar", "tgi word", "tgi choice",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(start: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    if not PYTHON.exists():
        pytest.skip("`make agents` installs what is missing")
    url = f"http://127.0.0.1:{start(model_id='').wait_ready().port}"
    used = subprocess.run([PYTHON, HERE / "use_agents.py", url], capture_output=True, text=True, timeout=600)
    assert used.returncode == 0, used.stderr
    rows = map(json.loads, used.stdout.splitlines())
    return {row.pop("client"): row for row in rows}


@pytest.mark.seconds(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_framework(found: dict[str, dict[str, Any]], name: str) -> None:
    got = found[name]
    assert "failed" not in got, got["failed"]
    assert got["version"] in (HERE / "requirements.txt").read_text("utf-8")
    for key in TEXTS:
        assert got.get(key, ANSWER) == ANSWER, key
    for key in WORDS:
        words = got.get(key, [])
        assert {words} <= CHOICES if isinstance(words, str) else set(words) <= CHOICES, key
