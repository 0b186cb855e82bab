"""What README.md shows is what happens."""

import json
import re
from pathlib import Path
from typing import Any

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_first_request_and_its_answer(start: Any) -> None:
    """The demo model, which is served when none is named, as `make run` does."""
    body = re.search(r"-d '(\{.*\})'", README)
    answer = re.search(r'^    (\{"generated_text".*\})$', README, re.MULTILINE)
    assert body is not None
    assert answer is not None
    server = start("tgi serve", model_id="", dtype="bfloat16").wait_ready()
    assert server.post("/generate", json.loads(body[1])) == (200, json.loads(answer[1]))
    assert json.loads(server.get("/info")[1])["model_id"] == "tgi-demo"
    server.end()
