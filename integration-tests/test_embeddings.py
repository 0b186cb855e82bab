"""A server whose model gives embeddings: from its folder to answers, and to its end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.embedding_models import make_model

pytestmark = pytest.mark.slow


def test_a_model_of_sentence_transformers_is_served(start: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_model(tmp_path, "BertModel", pooling={"pooling_mode_cls_token": True})
    server = start("tgi serve", model_id=folder, device="cpu").wait_ready()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="-", max_retries=0)
    found = client.embeddings.create(model="tgi", input=["what is a violin", "hello"])  # asks for base64
    (alone,) = client.embeddings.create(model="tgi", input="hello", encoding_format="float").data
    assert found.data[1].embedding == pytest.approx(alone.embedding, abs=1e-6)
    assert sum(number * number for number in alone.embedding) == pytest.approx(1)
    with pytest.raises(openai.NotFoundError, match="generates no text"):
        client.completions.create(model="tgi", prompt="hello")
    assert json.loads(server.get("/info")[1])["model_pipeline_tag"] == "feature-extraction"

    (process,) = [
        one for one in psutil.Process(server.process.pid).children() if "tgi.worker.pool" in one.cmdline()
    ]
    process.kill()
    assert server.process.wait(30) == 1
    assert "was killed by SIGKILL" in server.log.read_text()
