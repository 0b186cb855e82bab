"""ARCHITECTURE.md names every file that a request enters, and no other."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TRACE = """
import os, sys, threading, time

calls, folder = set(), os.environ["TRACED_CALLS"]

def note(frame, event, argument):
    if tracing and event == "call":
        code = frame.f_code
        if code.co_code[frame.f_lasti + 1] & 3 == 0:  # RESUME of a beginning, not after a yield or an await
            calls.add(code.co_filename)

def switch():
    global tracing
    while True:
        time.sleep(0.02)
        wanted = os.path.exists(f"{folder}/on")
        if tracing and not wanted:
            tracing = False
            with open(f"{folder}/{os.getpid()}.part", "w") as file:
                file.write("\\n".join(calls))
            os.replace(file.name, file.name.replace(".part", ".calls"))
        tracing = wanted

tracing = False
threading.setprofile(note)
sys.setprofile(note)
threading.Thread(target=switch, daemon=True).start()
"""
"""Module that Python imports at its start: writes the files of functions called while "on" exists."""
ELSEWHERE = ("layers/", "weights/formats/", "device/")
"""The model, the formats of its weights and its device, which differ."""


def named_files() -> set[str]:
    """Files of the table of hops."""
    section = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("## The way of a request")[1]
    table = "\n".join(line for line in section.split("\n## ")[0].splitlines() if line.startswith("|"))
    return set(re.findall(r"`([\w/]+\.py)`", table))


@pytest.mark.slow
@pytest.mark.seconds(300)
def test_architecture_names_every_file_that_a_request_enters(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(TRACE)
    environment = {"PYTHONPATH": str(tmp_path), "TRACED_CALLS": str(tmp_path)}
    server = start(model_id="", environment=environment).wait_ready()
    for _ in range(3):
        server.generate("What is Deep Learning?", max_new_tokens=5)
    (tmp_path / "on").touch()
    time.sleep(0.2)
    server.generate("What is Deep Learning?", max_new_tokens=5)
    (tmp_path / "on").unlink()
    server.wait_for(lambda: len(list(tmp_path.glob("*.calls"))) >= 2)
    server.end()
    entered = {
        name
        for file in tmp_path.glob("*.calls")
        for path in file.read_text().splitlines()
        if Path(path).is_relative_to(ROOT / "tgi")
        and not (name := str(Path(path).relative_to(ROOT / "tgi"))).startswith(ELSEWHERE)
    }
    assert entered == named_files()
