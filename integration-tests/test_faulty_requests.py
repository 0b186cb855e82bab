"""A request at which a rank dies, fails or runs out of memory ends with an error, and no other does."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tgi.config import DEMO_MODEL
from tgi.text.tokenizer import Tokenizer

NEIGHBOURS = 15
POISON = "A § is"
GRAMMAR = {"type": "regex", "value": "[a-z ]{10,40}"}


def parameters(number: int) -> dict[str, Any]:
    """Return those of a neighbour: greedy, seeded, or held to a grammar."""
    kinds: list[dict[str, Any]] = [{}, {"do_sample": True, "seed": number}, {"grammar": GRAMMAR}]
    return {"max_new_tokens": 12, "details": True, **kinds[number % 3]}


def ask(server: Any, number: int) -> list[int] | str:
    """Return the tokens of a neighbour, or its error."""
    inputs = f"A {number} is" if number < NEIGHBOURS else POISON
    status, answer = server.post("/generate", {"inputs": inputs, "parameters": parameters(number)}, 240)
    return [token["id"] for token in answer["details"]["tokens"]] if status == 200 else f"{status}: {answer}"


@pytest.fixture(scope="module")
def undisturbed(start: Any) -> list[list[int] | str]:
    """Texts of the neighbours."""
    server = start(model_id="", device="slow", environment={"SLOW_SECONDS": "0.01"}).wait_ready()
    with ThreadPoolExecutor(NEIGHBOURS) as pool:
        texts = list(pool.map(lambda number: ask(server, number), range(NEIGHBOURS)))
    server.end()
    return texts


@pytest.mark.slow
@pytest.mark.seconds(300)
@pytest.mark.parametrize(("fault", "ranks"), [("kill", 2), ("raise", 1), ("exhaust", 1)])
def test_it_ends_at_its_second_loss_of_the_ranks_and_15_neighbours_are_untouched(
    start: Any, undisturbed: list[Any], fault: str, ranks: int
) -> None:
    token = Tokenizer.from_folder(DEMO_MODEL).encode("§")[-1]
    assert all(isinstance(text, list) and token not in text for text in undisturbed), "another token, please"
    environment = {"SLOW_SECONDS": "0.05", "FAULT": fault, "FAULTY_TOKEN": str(token)}
    server = start(
        model_id="", device="failing", environment=environment, num_shard=ranks, threads=ranks
    ).wait_ready()
    with ThreadPoolExecutor(NEIGHBOURS + 1) as pool:
        *texts, poison = pool.map(lambda number: ask(server, number), range(NEIGHBOURS + 1))
    assert texts == undisturbed
    assert isinstance(poison, str)
    assert poison.startswith("424: ")
    assert "the engine was lost twice while it computed this request" in poison
    assert server.health() == 200
    assert server.metric("tgi_engine_restarts") == 2
    assert server.metric('tgi_kv_blocks{state="used"}') == 0
    assert ask(server, 0) == undisturbed[0], "it goes on"
    server.end()
