"""Logs: one line an event on stdout, readable text or JSON (tgi-behaviour 10.2), of this server's modules.

Everything goes through the standard `logging`, so that plugins need nothing special; structlog formats it.
Other libraries are heard from warnings on.
"""

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "off": 60}


class _StdoutHandler(logging.StreamHandler[Any]):
    """Looks sys.stdout up for every line: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def configure(level: str = "info", *, json_output: bool = False) -> None:
    """Send all logs to stdout. A level that is none, such as a filter expression, means info."""
    chain: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [_tgi_keys, structlog.processors.JSONRenderer()] if json_output else [_text]
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
    logging.captureWarnings(True)


def _tgi_keys(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """The keys of TGI's router, in its order, then the fields of the event."""
    head = {
        "timestamp": event.pop("timestamp"),
        "level": event.pop("level").upper(),
        "message": event.pop("event"),
    }
    target = event.pop("logger")
    return {**head, **event, "target": target}


def _text(_logger: Any, _method: str, event: EventDict) -> str:
    stamp, level, name = event.pop("timestamp"), event.pop("level").upper(), event.pop("logger")
    message, trace = event.pop("event"), event.pop("exception", None)
    fields = "".join(f" {key}={value!r}" for key, value in event.items())
    line = f"{stamp} {level:>7} {name}: {message}{fields}"
    return line if trace is None else f"{line}\n{trace}"
