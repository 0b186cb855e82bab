"""What clients get from a running server."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import huggingface_hub

PROMPT = "What is Deep Learning?"
EVERYTHING: dict[str, Any] = {
    "do_sample": True,
    "seed": 17,
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "typical_p": 0.95,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.1,
    "max_new_tokens": 24,
    "top_n_tokens": 3,
    "watermark": True,
}


def test_the_three_forms_give_the_same_text(server: Any) -> None:
    text = server.generate(PROMPT, max_new_tokens=8)["generated_text"]
    events = list(server.stream(PROMPT, max_new_tokens=8))
    assert events[-1]["generated_text"] == text
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    status, answer = server.post("/", {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}})
    assert (status, answer) == (200, [{"generated_text": PROMPT + text}])  # as TGI: the whole text


def test_inference_client(server: Any) -> None:
    """huggingface_hub's client, plain, streamed, and with details."""
    client = huggingface_hub.InferenceClient(f"http://127.0.0.1:{server.port}")
    expected = server.generate(PROMPT, max_new_tokens=6, details=True, decoder_input_details=True)
    assert client.text_generation(PROMPT, max_new_tokens=6) == PROMPT + expected["generated_text"]
    alone = client.text_generation(PROMPT, max_new_tokens=6, return_full_text=False)
    assert alone == expected["generated_text"]

    found = client.text_generation(PROMPT, max_new_tokens=6, details=True, decoder_input_details=True)
    assert found.generated_text == PROMPT + expected["generated_text"]
    assert [token.id for token in found.details.tokens] == [t["id"] for t in expected["details"]["tokens"]]
    assert len(found.details.prefill) == len(expected["details"]["prefill"])

    pieces = list(client.text_generation(PROMPT, max_new_tokens=6, stream=True))
    assert len(pieces) == 6
    events = list(client.text_generation(PROMPT, max_new_tokens=6, stream=True, details=True))
    assert [event.token.id for event in events] == [token.id for token in found.details.tokens]
    assert events[-1].details.finish_reason == "length"
    assert events[-1].details.generated_tokens == 6


def test_same_seed_same_text_alone_in_company_and_after_a_restart(server: Any, start: Any) -> None:
    alone = server.generate(PROMPT, details=True, **EVERYTHING)
    assert server.generate(PROMPT, details=True, **EVERYTHING) == alone
    others = [{**EVERYTHING, "seed": seed, "max_new_tokens": 10 + seed} for seed in range(1, 16)]
    with ThreadPoolExecutor(16) as pool:
        company = [pool.submit(server.generate, PROMPT[: 5 + i], **other) for i, other in enumerate(others)]
        together = pool.submit(server.generate, PROMPT, details=True, **EVERYTHING)
        assert together.result()["generated_text"] == alone["generated_text"]
        assert [t["id"] for t in together.result()["details"]["tokens"]] == [
            t["id"] for t in alone["details"]["tokens"]
        ]
        assert len({found.result()["generated_text"] for found in company}) > 1
    again = start(server.kind).wait_ready()
    assert again.generate(PROMPT, details=True, **EVERYTHING)["generated_text"] == alone["generated_text"]
    again.end()


def test_what_the_server_says_of_itself(server: Any) -> None:
    assert server.get("/health") == (200, "")
    assert server.get("/ping") == (200, "")
    assert '"max_total_tokens"' in server.get("/info")[1]
    server.wait_for(lambda: f". Chat at http://127.0.0.1:{server.port}/" in server.output())
