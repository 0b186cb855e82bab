"""The page at `/`, in a headless Chromium."""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUESTION = "What is a violin?"


@pytest.fixture(scope="module")
def found(run_client: Callable[..., str], url: str) -> Any:
    if BROWSER is None and "CI" not in os.environ:
        pytest.skip("install chromium to try the page")
    assert BROWSER is not None, "CI installs chromium"
    return json.loads(run_client("use_page.py", url, BROWSER))


def test_answers_stream_and_are_kept_in_the_browser(found: Any, reference: Any) -> None:
    expected = reference.chat(QUESTION).text
    chat = found["chat"]
    assert chat["welcome"] == "What can I help with?"
    assert (chat["answer"], chat["kept"], chat["again"]) == (expected,) * 3
    assert "".join(chat["tokens"]).startswith(expected)
    assert json.loads(chat["hint"].partition(" ")[0]) == chat["tokens"][0].strip()
    assert "%" in chat["hint"]
    assert (chat["new"], chat["deleted"]) == (0, 0)


def test_a_lost_connection_is_told_and_the_question_asked_again(found: Any) -> None:
    assert found["lost"] == {"said": "The connection to the server is lost.", "errors": 0}


def test_the_keyboard_is_enough(found: Any) -> None:
    assert found["keyboard"] == {
        "skip": "Skip to the message",
        "typed": "Hello\nagain",
        "sent": "Hello\nagain",
    }


def test_the_engine_is_shown(found: Any) -> None:
    engine = found["engine"]
    assert engine["figures"][:2] == ["Running", "Waiting"]
    assert "free of" in engine["blocks"]
    assert engine["charts"] == 6


def test_light_dark_and_a_phone(found: Any) -> None:
    themes = found["themes"]
    assert themes["dark"] != themes["light"] == themes["kept"]
    assert found["phone"] == {"chats": True, "overflow": 0}


def test_a_model_cannot_run_code_in_the_page(found: Any) -> None:
    assert found["markdown"] == {
        "hacked": None,
        "links": [],
        "images": [],
        "scripts": [],
        "nested": ["two"],
        "ordered": ["three"],
        "cells": ["c", "d"],
        "code": ["<script>window.hacked=1</script>"],
    }
    assert found["problems"] == []
