"""The cache of grammars and its processes, with the event loop running."""

import json
import os
from contextlib import aclosing
from typing import Any

import psutil
import pytest
import trio
import trio.testing
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models

from tests.own_processes import children_running
from tgi.api import grammars
from tgi.api.grammars import Grammars
from tgi.errors import InternalError, Overloaded, ValidationError
from tgi.text.grammar import GrammarCompiler, GrammarSpec
from tgi.text.tokenizer import Tokenizer

from .serving import EOS, make_tokenizer

SMALL = GrammarSpec("json", '{"properties": {"a": {"type": "integer"}}, "required": ["a"]}')
OTHER = GrammarSpec("regex", "[ab]+")
DEFINITIONS: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(9000)}
DEFINITIONS["d9000"] = {"type": "integer"}
OVERFLOW = GrammarSpec("json", json.dumps({"$defs": DEFINITIONS, "$ref": "#/$defs/d0"}))


def new_grammars() -> Grammars:
    return Grammars(GrammarCompiler(make_tokenizer(), 300))


def trials() -> list[psutil.Process]:
    """The trial processes that there are, the oldest first."""
    return children_running("tgi.text.grammar_trial")


async def until_refused(known: Grammars, spec: GrammarSpec, messages: list[str]) -> None:
    with pytest.raises(ValidationError) as raised:
        await known.matcher(spec)
    messages.append(str(raised.value))


async def test_a_grammar_is_compiled_once_and_each_text_has_its_own_matcher() -> None:
    async with aclosing(new_grammars()) as known:
        first = await known.matcher(SMALL)
        (process,) = trials()
        process.suspend()  # what needs it again would not return
        second = await known.matcher(SMALL)
        process.resume()
        before = second.mask
        first.advance(make_tokenizer().encode("{", add_special_tokens=False)[0])
        assert second.mask == before != first.mask
    assert trials() == []


async def test_the_same_grammar_twice_at_once_is_kept_once() -> None:
    async with aclosing(new_grammars()) as known:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(known.matcher, SMALL)
        assert known._size == known._known[SMALL][1]


async def test_v22b_what_is_not_valid_is_said_in_tgis_words() -> None:
    async with aclosing(new_grammars()) as known:
        messages: list[str] = []
        await until_refused(known, GrammarSpec("json", '{"type": "strin"}'), messages)
        (process,) = trials()
        process.suspend()
        await until_refused(known, GrammarSpec("json", '{"type": "strin"}'), messages)
        process.resume()
        assert set(messages) == {
            'Input validation error: grammar is not valid: `type` at the root: "strin" is not a type'
        }
        assert ValidationError.status == 422


async def test_a_grammar_that_takes_long_holds_up_nobody() -> None:
    messages: list[str] = []
    async with aclosing(new_grammars()) as known, trio.open_nursery() as nursery:
        await known.matcher(SMALL)
        (busy,) = trials()
        busy.suspend()
        nursery.start_soon(until_refused, known, OVERFLOW, messages)
        await trio.testing.wait_all_tasks_blocked()
        assert await known.matcher(OTHER)
        assert messages == []
        busy.resume()
    assert messages == ["Input validation error: grammar is not valid: it is too complex to compile"]


async def test_a_client_that_does_not_wait_and_a_process_that_is_gone_do_no_harm() -> None:
    async with aclosing(new_grammars()) as known:
        await known.matcher(SMALL)
        (process,) = trials()
        process.suspend()
        with trio.move_on_after(0.05) as scope:
            await known.matcher(OTHER)
        assert scope.cancelled_caught
        assert not process.is_running()
        assert await known.matcher(OTHER)
        (process,) = trials()
        process.kill()
        assert await known.matcher(GrammarSpec("regex", "c"))


async def test_ctrl_c_does_not_reach_the_processes() -> None:
    async with aclosing(new_grammars()) as known:
        await known.matcher(SMALL)
        (process,) = trials()
        assert os.getpgid(process.pid) != os.getpgid(0)
        assert await known.matcher(OTHER)
        assert trials() == [process]


async def test_a_machine_that_is_too_busy_is_not_the_grammars_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from tgi.text import grammar_trial as t; t.CLOCK_SECONDS = 0.03; t.main()"
    monkeypatch.setattr(grammars, "COMMAND", ("-c", code))
    async with aclosing(new_grammars()) as known:
        spec = GrammarSpec("regex", "a?" * 8000)
        for _ in range(2):
            with pytest.raises(Overloaded):
                await known.matcher(spec)
        assert spec not in known._known


async def test_without_any_process_it_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "COMMAND", ("-c", "raise SystemExit(1)"))
    async with aclosing(new_grammars()) as known:
        with pytest.raises(InternalError):
            await known.matcher(SMALL)


async def test_a_tokenizer_that_cannot_be_constrained_is_said_with_the_request() -> None:
    core = Core(models.WordPiece({"a": 0, "</s>": EOS}, unk_token="a"))
    core.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(core, [], [EOS])
    async with aclosing(Grammars(GrammarCompiler(tokenizer, 300))) as known:
        await known.prepare()
        messages: list[str] = []
        await until_refused(known, SMALL, messages)
        assert "grammar is not valid: this model's tokenizer cannot be constrained" in messages[0]


async def test_what_was_used_least_recently_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aclosing(new_grammars()) as known:
        await known.matcher(SMALL)
        await known.matcher(OTHER)
        monkeypatch.setattr(grammars, "CACHED_BYTES", known._size)
        await known.matcher(SMALL)
        await until_refused(known, GrammarSpec("regex", "("), [])
        assert [spec.source for spec in known._known] == [SMALL.source, "("]
        monkeypatch.setattr(grammars, "CACHED_BYTES", 1)
        assert await known.matcher(OTHER)
        assert list(known._known) == [OTHER]
        assert known._size == known._known[OTHER][1]


async def test_a_large_vocabulary_is_read_before_the_first_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aclosing(new_grammars()) as known:
        await known.prepare()
        assert trials() == []
    monkeypatch.setattr(grammars, "LARGE_VOCABULARY", 300)
    async with aclosing(new_grammars()) as known:
        await known.prepare()
        before = trials()
        assert len(before) == 1
        await known.matcher(SMALL)
        assert trials() == before
