"""`/invocations`, `/vertex` and KServe's routes: tgi-behaviour R1.6, R1.7, R1.23 to R1.27, R2.75, 3.11."""

from typing import Any

import pytest

from .serving import make_tokenizer, saying, serving
from .test_chat import chunks

USER = {"role": "user", "content": "Hello"}
INFER = "/v2/models/any/versions/1/infer"


@pytest.mark.contract("R1.6", "R2.70")
async def test_invocations_take_what_the_body_looks_like() -> None:
    async with serving(saying("Hello")) as server:
        body: dict[str, Any] = {"inputs": "x", "parameters": {"return_full_text": False}}
        answer = await server.ask("POST", "/invocations", body)
        assert answer.json == [{"generated_text": "Hello"}]
        answer = await server.ask("POST", "/invocations", {"inputs": "x"})
        assert answer.json == [{"generated_text": "xHello"}]  # R2.70
        answer = await server.ask("POST", "/invocations", {"messages": [USER]})
        assert answer.json["object"] == "chat.completion"
        answer = await server.ask("POST", "/invocations", {"messages": [USER], "stream": True})
        assert len(chunks(answer)) == 3
        answer = await server.ask("POST", "/invocations", {"prompt": "x"})
        assert answer.json["object"] == "text_completion"
        answer = await server.ask("POST", "/invocations", {"inputs": "x", "stream": True})
        assert answer.events[-1]["generated_text"] == "xHello"


@pytest.mark.contract("R1.7", "3.11")
async def test_vertex_predictions_are_in_the_order_of_the_instances() -> None:
    async with serving() as server:
        text = make_tokenizer().decode
        body = {
            "instances": [
                {"inputs": "a", "parameters": {"max_new_tokens": 1, "seed": 40}},
                {"messages": [USER], "max_tokens": 1, "seed": 50},
                {"inputs": "a", "parameters": {"max_new_tokens": 2, "seed": 60}},
            ]
        }
        answer = await server.ask("POST", "/vertex", body)
        assert answer.json == {"predictions": [text([40]), text([50]), text([60, 61])]}
        assert not [name for name in answer.headers if name.startswith("x-compute")]


@pytest.mark.contract("V37")
async def test_vertex_without_instances() -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/vertex", {"instances": []})
        assert answer.status == 422
        assert answer.json == {
            "error": "Input validation error",
            "error_type": "Input validation error",
        }
        body = {"instances": [{"inputs": ""}]}
        answer = await server.ask("POST", "/vertex", body)
        assert (answer.status, answer.json["error_type"]) == (422, "validation")
        assert server.service.in_flight == 0


@pytest.mark.contract("R1.27")
async def test_kserve_inference() -> None:
    async with serving(saying("Hé")) as server:
        inputs = [
            {"name": name, "shape": [1], "datatype": "BYTES", "data": list("é".encode())}
            for name in ("i0", "i1")
        ]
        body = {"id": "7", "inputs": inputs, "outputs": [{"name": "o0"}, {"name": "o1"}]}
        answer = await server.ask("POST", INFER, body)
        data = list("Hé".encode())
        assert answer.json == {
            "id": "7",
            "outputs": [
                {"name": name, "shape": [1, len(data)], "datatype": "BYTES", "data": data}
                for name in ("o0", "o1")
            ],
        }


@pytest.mark.contract("R1.27")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"outputs": []}, {"error": "Inputs and outputs length mismatch", "error_type": "length mismatch"}),
        ({"inputs": [{"name": "i", "shape": [1], "datatype": "BYTES", "data": [255]}]}, "utf8"),
    ],
)
async def test_kserve_errors(change: dict[str, Any], error: Any) -> None:
    async with serving() as server:
        body = {
            "id": "7",
            "inputs": [{"name": "i", "shape": [1], "datatype": "BYTES", "data": [65]}],
            "outputs": [{"name": "o"}],
        }
        answer = await server.ask("POST", INFER, body | change)
        assert answer.status == 422
        assert error in (answer.json, answer.json["error_type"])


@pytest.mark.contract("R1.23", "R1.24", "R1.25", "R1.26")
async def test_kserve_metadata() -> None:
    async with serving() as server:
        assert (await server.ask("GET", "/v2/health/live")).json == {"live": True}
        assert (await server.ask("GET", "/v2/health/ready")).json["live"] is True
        metadata = (await server.ask("GET", "/v2")).json
        assert metadata["name"] == "text-generation-inference"
        assert metadata["extensions"] == ["health", "models", "metrics"]
        answer = await server.ask("GET", "/v2/models/m/versions/2")
        assert answer.json == {"name": "m", "version": "2", "extensions": ["infer", "ready"]}
        assert (await server.ask("GET", "/v2/models/m/versions/2/ready")).json["live"] is True
