"""LoRA adapters over HTTP: names, routes of vLLM, slots, and prefixes that they do not share."""

from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tgi.config import Options
from tgi.protocol import LoraSlots

from .serving import Server, serving

SLOTS = LoraSlots(2, 8)
RUNTIME = Options(allow_runtime_lora_updating=True)
FOLDER = str(Path(__file__).parent)
USER = {"role": "user", "content": "Hi"}


async def load(server: Server, name: str, path: str = FOLDER, **more: Any) -> tuple[int, str]:
    body = {"lora_name": name, "lora_path": path, **more}
    answer = await server.ask("POST", "/v1/load_lora_adapter", body)
    return answer.status, answer.body.decode()


async def unload(server: Server, name: str) -> tuple[int, str]:
    answer = await server.ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})
    return answer.status, answer.body.decode()


async def complete(server: Server, **fields: Any) -> Any:
    body = {"prompt": "Hello", "max_tokens": 3, "temperature": 0, "seed": 40, **fields}
    return (await server.ask("POST", "/v1/completions", body)).json


async def text_of(server: Server, **parameters: Any) -> str:
    answer = await server.generate({"max_new_tokens": 3, "seed": 40, **parameters})
    assert answer.status == 200, answer.body
    return str(answer.json["generated_text"])


async def test_adapters_are_models() -> None:
    async with serving(loras=SLOTS) as server:
        listed = (await server.ask("GET", "/v1/models")).json["data"]
        one = (await server.ask("GET", "/v1/models/sql")).json
        assert [(card["id"], card["root"], card["parent"]) for card in listed] == [
            ("some/model", "some/model", None),
            ("sql", "org/sql", "some/model"),
        ]
        assert one == listed[1]
        base, adapted = await text_of(server), await text_of(server, adapter_id="sql")
        assert base != adapted
        for model, text in ((None, base), ("tgi", base), ("some/model", base), ("sql", adapted)):
            answer = await complete(server, model=model)
            assert answer["choices"][0]["text"] == text
            assert answer["model"] == ("sql" if model == "sql" else "some/model")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [USER]}),
        ("/v1/messages", {"messages": [USER], "max_tokens": 3}),
        ("/v1/responses", {"input": "Hi"}),
        ("/api/chat", {"messages": [USER], "stream": False}),
    ],
)
async def test_every_api_chooses_by_model(path: str, body: dict[str, Any]) -> None:
    async with serving(loras=SLOTS) as server:
        for model, status in (("sql", 200), ("some/model", 200), ("other", 404)):
            answer = await server.ask("POST", path, {**body, "model": model})
            assert answer.status == status, answer.body
            if status == 200:
                assert answer.json["model"] == model


@pytest.mark.contract("2.2")
async def test_an_unknown_adapter_is_refused() -> None:
    async with serving(loras=SLOTS) as server:
        answer = await server.generate({"adapter_id": "other"})
        assert answer.status == 422
        assert answer.json["error"].endswith("`adapter_id`: no LoRA adapter is named 'other'; loaded are sql")
        assert (await complete(server, model="other"))["error"]["code"] == "model_not_found"
    async with serving() as server:
        answer = await server.generate({"adapter_id": "other"})
        assert answer.status == 422
        assert answer.json["error"].endswith("'other'; none is loaded")
        assert (await complete(server, model="other"))["model"] == "some/model"


async def test_loading_and_unloading() -> None:
    async with serving(loras=SLOTS, options=RUNTIME) as server:
        assert await load(server, "new") == (200, "Success: LoRA adapter 'new' added successfully.")
        assert await text_of(server, adapter_id="new") != await text_of(server, adapter_id="sql")
        status, text = await load(server, "new")
        assert status == 400
        assert "has already been loaded" in text
        status, text = await load(server, "more")
        assert status == 400
        assert "--max-loras is 2, and all slots are taken" in text
        assert await unload(server, "sql") == (200, "Success: LoRA adapter 'sql' removed successfully.")
        assert (await unload(server, "sql"))[0] == 404
        assert (await server.generate({"adapter_id": "sql"})).status == 422
        assert (await load(server, "more"))[0] == 200


@pytest.mark.parametrize(
    ("name", "path", "status", "text"),
    [
        ("", FOLDER, 400, "must be provided"),
        ("a", "", 400, "must be provided"),
        ("some/model", FOLDER, 400, "is the name of the model itself"),
        ("a", "/no/such/folder", 404, "there is no folder /no/such/folder"),
    ],
)
async def test_what_cannot_be_loaded(name: str, path: str, status: int, text: str) -> None:
    async with serving(loras=SLOTS, options=RUNTIME) as server:
        found, told = await load(server, name, path)
        assert found == status
        assert text in told


@pytest.mark.parametrize("name", ["org/sql", "数据-ü", "a b", "a%2Fb"])
async def test_any_text_is_a_name(name: str) -> None:
    async with serving(loras=SLOTS, options=RUNTIME) as server:
        assert (await load(server, name))[0] == 200
        adapted = await text_of(server, adapter_id=name)
        assert adapted != await text_of(server)
        answer = await complete(server, model=name)
        assert (answer["model"], answer["choices"][0]["text"]) == (name, adapted)
        card = (await server.ask("GET", f"/v1/models/{quote(name)}")).json
        assert card["id"] == name
        assert (await unload(server, name))[0] == 200


async def test_an_empty_name_is_none() -> None:
    async with serving(loras=SLOTS) as server:
        base = await text_of(server)
        assert await text_of(server, adapter_id="") == await text_of(server, adapter_id=None) == base
        assert (await complete(server, model=""))["choices"][0]["text"] == base


async def test_clients_may_not_load_unless_the_operator_says_so() -> None:
    async with serving(loras=SLOTS) as server:
        for status, text in (await load(server, "a"), await unload(server, "sql")):
            assert status == 403
            assert "--allow-runtime-lora-updating" in text
    async with serving(options=RUNTIME) as server:
        status, text = await load(server, "a")
        assert status == 403
        assert "--enable-lora" in text


async def test_adapters_share_no_prefix_with_each_other_or_the_model() -> None:
    prompt = "Hello world what is deep learning? " * 2

    async def cached(server: Server, model: str) -> int:
        usage = (await complete(server, prompt=prompt, model=model))["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    async with serving(loras=SLOTS, options=RUNTIME) as server:
        for model in ("some/model", "sql"):
            assert await cached(server, model) == 0
            assert await cached(server, model) > 0
        assert (await load(server, "sql", load_inplace=True))[0] == 200
        assert await cached(server, "sql") == 0


async def test_a_text_goes_on_when_its_adapter_is_unloaded() -> None:
    """Its slot is free once it has ended."""
    async with serving(loras=LoraSlots(1, 8), options=RUNTIME, step_seconds=0.05) as server:
        wanted = await text_of(server, adapter_id="sql", max_new_tokens=12)
        texts: list[str] = []

        async def ask() -> None:
            texts.append(await text_of(server, adapter_id="sql", max_new_tokens=12))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.2)
            assert (await unload(server, "sql"))[0] == 200
            assert (await load(server, "new"))[0] == 400
            assert (await server.generate({"adapter_id": "sql"})).status == 422
        assert texts == [wanted]
        assert (await load(server, "new"))[0] == 200


async def test_gateways_learn_which_adapters_are_in_use() -> None:
    async with serving(loras=SLOTS, step_seconds=0.05) as server, trio.open_nursery() as nursery:
        nursery.start_soon(partial(text_of, server, adapter_id="sql", max_new_tokens=12))
        await trio.sleep(0.2)
        told = (await server.ask("GET", "/metrics?names=vllm")).body.decode()
        labels = 'max_lora="2",waiting_lora_adapters="",running_lora_adapters="sql"'
        assert f"vllm:lora_requests_info{{{labels}}} " in told
    async with serving() as server:
        assert "lora" not in (await server.ask("GET", "/metrics?names=vllm")).body.decode()
