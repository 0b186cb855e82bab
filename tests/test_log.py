"""The two forms of a line, and who is heard."""

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest

from tgi import log as logs


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What has been written to stdout; logging is as before afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("tgi")
    before = root.handlers, root.level, ours.level
    yield lambda: capsys.readouterr().out
    root.handlers = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(False)


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
