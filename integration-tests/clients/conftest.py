"""One server of the demo model, what transformers makes of the same weights, and the clients' Python."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tgi.config import DEMO_MODEL

HERE = Path(__file__).parent
PYTHONS = {"server": Path(sys.executable), "clients": Path(sys.prefix) / "clients" / "bin" / "python"}
"""`make clients` makes the second, of requirements.txt."""


@attrs.frozen
class Answer:
    """A greedy answer and what it counts."""

    text: str
    prompt_tokens: int
    tokens: int
    """The end of the text included."""


@attrs.frozen
class Score:
    """Of a continuation."""

    log_likelihood: float
    tokens: int
    greedy: bool
    """Greedy decoding would give it."""


@attrs.frozen
class Reference:
    """The demo model in transformers, in float32."""

    tokenizer: PreTrainedTokenizerBase = attrs.field(repr=False)
    model: PreTrainedModel = attrs.field(repr=False)

    def chat(self, question: str) -> Answer:
        """The whole answer to one message of a user."""
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._greedy(self.tokenizer(text, add_special_tokens=False)["input_ids"], 100)

    def complete(self, prompt: str, max_new_tokens: int) -> Answer:
        """The continuation of a prompt."""
        return self._greedy(self.tokenizer(prompt)["input_ids"], max_new_tokens)

    def score(self, context: str, continuation: str) -> Score:
        """How likely the continuation is."""
        ids = torch.tensor([self.tokenizer(context + continuation)["input_ids"]])
        begin = len(self.tokenizer(context)["input_ids"])
        with torch.inference_mode():
            logits = self.model(ids).logits[0, begin - 1 : -1]
        logprobs = logits.double().log_softmax(-1)
        chosen = logprobs.gather(-1, ids[0, begin:, None])[:, 0]
        return Score(float(chosen.sum()), len(chosen), bool((chosen == logprobs.amax(-1)).all()))

    def _greedy(self, ids: list[int], max_new_tokens: int) -> Answer:
        with torch.inference_mode():
            found = self.model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=max_new_tokens, use_cache=True
            )[0, len(ids) :]
        return Answer(self.tokenizer.decode(found, skip_special_tokens=True), len(ids), len(found))


@pytest.fixture(scope="session")
def reference() -> Reference:
    """transformers' view of the demo model."""
    torch.set_num_threads(1)  # on a busy machine two threads spend their time waiting for each other
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    return Reference(AutoTokenizer.from_pretrained(DEMO_MODEL), model)


@pytest.fixture(scope="session")
def url(start: Callable[..., Any]) -> str:
    """Of a server of the demo model, in float32."""
    return f"http://127.0.0.1:{start(model_id='').wait_ready().port}"


@pytest.fixture(scope="session")
def run_client() -> Callable[..., str]:
    """Run a command with the client's Python; gives what it prints. It has to succeed."""

    def run(*command: str | Path, python: str = "clients", cwd: Path = HERE, **variables: str) -> str:
        assert PYTHONS[python].exists(), "`make clients` installs what is missing"
        found = subprocess.run(
            [PYTHONS[python], *command],
            cwd=cwd,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    return run


@pytest.fixture(scope="session")
def example(run_client: Callable[..., str], url: str) -> Callable[..., Any]:
    """Run one of the scripts beside this file; gives the JSON that it prints."""

    def run(script: str, python: str = "clients") -> Any:
        return json.loads(run_client(HERE / script, url, python=python))

    return run
