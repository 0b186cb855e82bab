"""What README.md shows is what happens."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def demo(start: Any) -> Iterator[Any]:
    """The demo model, which is served when none is named, as `make run` does."""
    server = start("tgi serve", model_id="", dtype="bfloat16").wait_ready()
    yield server
    server.end()


def test_the_first_request_and_its_answer(demo: Any) -> None:
    body = re.search(r"-d '(\{.*\})'", README)
    answer = re.search(r'^    (\{"generated_text".*\})$', README, re.MULTILINE)
    assert body is not None
    assert answer is not None
    assert demo.post("/generate", json.loads(body[1])) == (200, json.loads(answer[1]))
    assert json.loads(demo.get("/info")[1])["model_id"] == "tgi-demo"


def test_the_programs_that_use_client_libraries(demo: Any) -> None:
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", README, re.MULTILINE)
    programs = [block.replace("\n    ", "\n").strip() for block in blocks if "import " in block]
    embedded, clients = programs  # those of two libraries follow one another
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(clients.replace("localhost:8080", f"127.0.0.1:{demo.port}"), {})
    assert printed.getvalue().count("violin is") == 2
    with contextlib.redirect_stdout(printed):
        exec(embedded.replace('"org/name", ', ""), {})
    assert "['" in printed.getvalue(), "the list of two texts"
