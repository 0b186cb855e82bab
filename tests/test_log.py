"""The two forms of a line, and who is heard."""

import contextlib
import inspect
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from tgi import log as logs


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], logging_as_before: None) -> Iterator[Callable[[], str]]:  # noqa: ARG001
    """Return the lines written to stdout so far."""

    def read() -> str:
        for handler in logging.getLogger().handlers:
            handler.close()
        return capsys.readouterr().out

    yield read
    read()


def test_text(lines: Callable[[], str]) -> None:
    logs.configure()
    logging.getLogger("tgi.engine").info("Connected", extra={"port": 3000})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z    INFO tgi\.engine: Connected port=3000\n", lines()
    )


@pytest.mark.contract("--json-output")
def test_json_has_the_keys_of_the_router_in_its_order(lines: Callable[[], str]) -> None:
    """timestamp, level, message and the fields of the event, target, place."""
    logs.configure(json_output=True)
    logging.getLogger("tgi.api").warning("slow %s", "client", extra={"seconds": 2})
    number = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    line = json.loads(lines())
    assert list(line) == [
        "timestamp", "level", "message", "seconds", "target", "filename", "line_number"
    ]  # fmt: skip
    assert (line["level"], line["message"], line["target"]) == ("WARNING", "slow client", "tgi.api")
    assert (line["filename"], line["line_number"]) == ("tests/test_log.py", number)


def test_what_is_logged_of_a_request_is_a_span(lines: Callable[[], str]) -> None:
    logs.configure(json_output=True)
    logging.getLogger("tgi.api").info("Success", extra={"span": {"seed": "None", "name": "generate"}})
    line = json.loads(lines())
    assert list(line)[-4:] == ["filename", "line_number", "span", "spans"]
    assert line["span"] == {"seed": "None", "name": "generate"}
    assert line["spans"] == [line["span"]]


def test_a_span_in_text(lines: Callable[[], str]) -> None:
    logs.configure()
    logging.getLogger("tgi.api").info("Success", extra={"span": {"seed": "None", "tokens": 2, "name": "x"}})
    assert lines().endswith("    INFO x{seed='None' tokens=2}: tgi.api: Success\n")


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("info", ["info", "warning"]),
        ("warn", ["warning"]),
        ("error", []),
        ("DEBUG", ["debug", "info", "warning"]),
        ("info,text_generation_router=debug", ["info", "warning"]),
    ],
)
def test_levels(lines: Callable[[], str], level: str, heard: list[str]) -> None:
    logs.configure(level, json_output=True)
    for name in ("debug", "info", "warning"):
        getattr(logging.getLogger("tgi.server"), name)(name)
    assert [json.loads(line)["message"] for line in lines().splitlines()] == heard


def test_libraries_are_heard_from_warnings_on(lines: Callable[[], str]) -> None:
    logs.configure("debug")
    logging.getLogger("huggingface_hub").info("chatter")
    logging.getLogger("huggingface_hub").warning("trouble")
    (line,) = lines().splitlines()
    assert "trouble" in line


@pytest.mark.parametrize("json_output", [False, True])
def test_an_exception_shows_its_traceback(lines: Callable[[], str], json_output: bool) -> None:
    logs.configure(json_output=json_output)
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("tgi").exception("defect")
    written = lines()
    assert "KeyError: 'lost'" in written
    assert written.count("\n") == (1 if json_output else 5)


def test_text_of_a_client_forges_no_line(lines: Callable[[], str]) -> None:
    logs.configure()
    try:
        raise ValueError("a\n2026 INFO tgi: forged\x1b[31m")
    except ValueError:
        logging.getLogger("tgi.api").exception("b\n2026 INFO: forged\u2028\x9b", extra={"path": "\nforged"})
    first, *rest = lines().splitlines()
    assert first.endswith(r"b\n2026 INFO: forged\u2028\x9b path='\nforged'")
    assert rest
    assert all(line.startswith("  ") and "\x1b" not in line for line in rest)


def test_an_unread_pipe_blocks_nobody(monkeypatch: pytest.MonkeyPatch, lines: Callable[[], str]) -> None:
    reader, writer = os.pipe()
    pipe = open(writer, "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", pipe)
    handler = logs.configure()
    for _ in range(logs.MAX_LINES + 2000):  # 64 kB are in the pipe, MAX_LINES in the queue
        logging.getLogger("tgi").info("x" * 100)
    assert logs.dropped_lines() > 1000
    monkeypatch.undo()
    os.close(reader)  # now the pipe is broken, and its lines are dropped one by one
    handler.close()
    assert not handler._thread.is_alive()
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
    lines()


@pytest.mark.parametrize("closed", [True, False])
def test_a_server_without_stdout_logs_nothing(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], str], closed: bool
) -> None:
    stream = io.StringIO() if closed else None
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    handler = logs.configure()
    logging.getLogger("tgi").info("nobody reads this")
    handler.close()
    assert logs.dropped_lines() == 1
    monkeypatch.undo()
    lines()


def test_a_full_file_table_is_reported_once_a_minute(lines: Callable[[], str]) -> None:
    logs.configure()
    for _ in range(10):
        logging.getLogger("trio.serve_listeners").error("accept returned EMFILE", exc_info=OSError())
    assert len(lines().splitlines()) == 1
