"""Every model of the table: one request, and four at once, give the text that is known of it.

`pytest --gaudi` takes those of the Hub that TGI's Gaudi backend tests, `--gaudi-all-models` all of them. With
the variable DOCKER_IMAGE they run in containers. `--capture-expected-outputs` keeps what they answer.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .service import Service, open_service
from .table import INPUT, MADE_HERE, MORE_ON_GAUDI, ON_GAUDI, TOKENS, Model

EXPECTED = Path(__file__).parent / "expected_outputs.json"
AT_ONCE = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which rows of the table."""
    asked = metafunc.config.getoption
    models = MADE_HERE
    if asked("--gaudi", False) or asked("--gaudi-all-models", False):
        models = [*ON_GAUDI, *(MORE_ON_GAUDI if asked("--gaudi-all-models", False) else [])]
    if "model" in metafunc.fixturenames:
        names = [model.name for model in models]
        metafunc.parametrize("model", models, ids=names, scope="module")


@pytest.fixture(scope="module")
def service(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(model, tmp_path_factory.mktemp("service")) as ready:
        yield ready


@pytest.fixture
def expected(model: Model, service: Service, pytestconfig: pytest.Config) -> str:
    """The text that is kept; what the server answers now, where it is to be captured."""
    kept: dict[str, str] = json.loads(EXPECTED.read_text("utf-8"))
    if pytestconfig.getoption("--capture-expected-outputs", False) and model.name == model.expected:
        kept[model.expected] = ask(service).generated_text
        EXPECTED.write_text(json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
    if model.expected not in kept:
        pytest.fail(
            f"{model.expected}: no text is known; make capture-expected-outputs-for-integration-tests"
        )
    return kept[model.expected]


def ask(service: Service) -> Any:
    return service.client.text_generation(
        INPUT, max_new_tokens=TOKENS, details=True, decoder_input_details=True, return_full_text=False
    )


def test_a_single_request(service: Service, expected: str) -> None:
    answer = ask(service)

    assert answer.details.generated_tokens == TOKENS
    assert answer.generated_text == expected


def test_a_batch(service: Service, expected: str) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(ask, [service] * AT_ONCE))

    assert [answer.details.generated_tokens for answer in answers] == [TOKENS] * AT_ONCE
    assert [answer.generated_text for answer in answers] == [expected] * AT_ONCE


@pytest.mark.parametrize(
    "made", [model for model in MADE_HERE if model.name == model.expected], ids=lambda model: model.name
)
def test_what_is_kept_is_what_transformers_says(made: Model, tmp_path: Path) -> None:
    """Of the checkpoints that are made here."""
    assert callable(made.model)
    folder = made.model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(INPUT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    assert text == json.loads(EXPECTED.read_text("utf-8"))[made.expected]
