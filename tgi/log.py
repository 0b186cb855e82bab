"""Logging to stdout, one line per event, as text or JSON with the keys of TGI's router.

All modules and plugins use the standard `logging`; structlog formats the records. Other libraries are logged
from warnings on. The line of a request carries the extra `span`, a dict with the key `name`, as in TGI (O23).
"""

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "off": 60}
_ROOT = Path(__file__).parent.parent


class _StdoutHandler(logging.StreamHandler[Any]):
    """Writes to the current sys.stdout, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def configure(level: str = "info", *, json_output: bool = False, traced: Sequence[str] = ()) -> None:
    """Send all logs to stdout. An unknown level, such as a filter expression, means info.

    Loggers named in `traced` log everything.
    """
    chain: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [_text]
    if json_output:
        chain.append(_add_place)
        last = [_tgi_keys, structlog.processors.JSONRenderer()]
    handler = _StdoutHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *last,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tgi").setLevel(_LEVELS.get(level.lower(), logging.INFO))
    for name in traced:
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.captureWarnings(True)


def _add_place(_logger: Any, _method: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    event["filename"] = _below_root(record.pathname)
    event["line_number"] = record.lineno
    return event


@functools.cache
def _below_root(path: str) -> str:
    return str(Path(path).relative_to(_ROOT)) if Path(path).is_relative_to(_ROOT) else path


def _tgi_keys(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Order the keys as TGI's router does, with the fields of the event after its message."""
    head = {
        "timestamp": event.pop("timestamp"),
        "level": event.pop("level").upper(),
        "message": event.pop("event"),
    }
    tail = {
        "target": event.pop("logger"),
        "filename": event.pop("filename"),
        "line_number": event.pop("line_number"),
    }
    span = event.pop("span", None)
    if span is not None:
        tail |= {"span": span, "spans": [span]}
    return {**head, **event, **tail}


def _text(_logger: Any, _method: str, event: EventDict) -> str:
    stamp, level, name = event.pop("timestamp"), event.pop("level").upper(), event.pop("logger")
    message, trace = event.pop("event"), event.pop("exception", None)
    span = dict(event.pop("span", {}))
    inside = f"{span.pop('name')}{{{_fields(span)}}}: " if span else ""
    fields = _fields(event)
    line = f"{stamp} {level:>7} {inside}{name}: {message}{fields and ' '}{fields}"
    return line if trace is None else f"{line}\n{trace}"


def _fields(fields: EventDict) -> str:
    return " ".join(f"{key}={value!r}" for key, value in fields.items())
