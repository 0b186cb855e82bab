"""`/tokenize` in the forms of TGI and vLLM."""

from typing import Any

import pytest

from .serving import LIMITS, make_tokenizer, serving

TEXT = "Hello world"
USER = {"role": "user", "content": "Hello"}


def form(ids: list[int], names: list[str] | None = None) -> dict[str, Any]:
    return {"count": len(ids), "max_model_len": LIMITS.max_total_tokens, "tokens": ids, "token_strs": names}


async def test_a_text_in_tgis_form() -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/tokenize", {"inputs": TEXT, "prompt": "x"})
        assert [piece["id"] for piece in answer.json] == make_tokenizer().encode(TEXT)


@pytest.mark.parametrize(("special", "adds"), [(None, True), (True, True), (False, False)])
async def test_a_prompt_in_vllms_form(special: bool | None, adds: bool) -> None:
    ids = make_tokenizer().encode(TEXT, add_special_tokens=adds)
    async with serving() as server:
        body = {"model": "any", "prompt": TEXT, "add_special_tokens": special}
        assert (await server.ask("POST", "/tokenize", body)).json == form(ids)
        answer = await server.ask("POST", "/tokenize", {**body, "return_token_strs": True})
        assert answer.json == form(ids, ["<s>"] * adds + ["Hello", "Ġworld"])


async def test_a_conversation_in_vllms_form() -> None:
    async with serving() as server:
        for more, prompt in [
            ({}, "<s>[user]Hello[assistant]"),
            ({"add_generation_prompt": False}, "<s>[user]Hello"),
            ({"messages": [USER, {"role": "assistant", "content": "Hi"}]}, "<s>[user]Hello[assistant]Hi"),
        ]:
            answer = await server.ask("POST", "/tokenize", {"messages": [USER], **more})
            assert answer.json == form(make_tokenizer().encode(prompt, add_special_tokens=False))
            answer = await server.ask(
                "POST", "/tokenize", {"messages": [USER], "add_special_tokens": True, **more}
            )
            assert answer.json == form(make_tokenizer().encode(prompt))
        answer = await server.ask("POST", "/tokenize", {"messages": []})
        assert (answer.status, answer.json["error"]) == (
            422, "Input validation error: `messages` cannot be empty",
        )  # fmt: skip


async def test_a_body_of_no_form_is_refused() -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/tokenize", {"text": TEXT})
        assert answer.status == 422
        assert b"Expected one of: GenerateRequest (" in answer.body
