"""Logging to stdout, one line per event, as text or JSON with the keys of TGI's router.

All modules and plugins use the standard `logging`; structlog formats the records, and a thread writes them.
Logging never blocks the server or fails it: lines that cannot be written are dropped and counted. Other
libraries are logged from warnings on. The line of a request has the extra `span`, a dict with the key `name`,
as in TGI (O23).
"""

import contextlib
import functools
import logging
import math
import queue
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "off": 60}
_ROOT = Path(__file__).parent.parent
MAX_LINES = 10_000
"""Lines that may wait to be written; more are dropped."""
FLUSH_SECONDS = 1.0
"""Seconds that the end of the server waits for its last lines to be written."""
_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
"""Control characters and line separators, which could forge lines or move a terminal's cursor."""
_ESCAPES_OF_TRACES = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\n\t"}


class Writer(logging.Handler):
    """Writes lines to the current sys.stdout, which a progress bar may have replaced, in a daemon thread."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        """Number of lines that found the queue full or could not be written."""
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, for FLUSH_SECONDS at most, and end the thread."""
        super().close()
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH_SECONDS)
        self._thread.join(FLUSH_SECONDS)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                sys.stdout.write(f"{line}\n")
                if self._lines.empty():
                    sys.stdout.flush()
            except (AttributeError, OSError, ValueError):  # None, a broken pipe or a full disk, a closed file
                self.dropped += 1


class _Seldom(logging.Filter):
    """Lets a record of a logger pass once a minute, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a minute has passed since the last record."""
        record.exc_info = None
        passed = record.created - self._last >= 60
        if passed:
            self._last = record.created
        return passed


def configure(level: str = "info", *, json_output: bool = False, traced: Sequence[str] = ()) -> Writer:
    """Send all logs to stdout through the writer that is returned; close it at the end.

    An unknown level, such as a filter expression, means info. Loggers named in `traced` log everything.
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
    handler = Writer()
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
    logging.getLogger("trio.serve_listeners").addFilter(_Seldom())  # ten lines a second without free files
    logging.captureWarnings(True)
    return handler


def dropped_lines() -> int:
    """Return the number of lines that could not be written since `configure`."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, Writer))


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
    message, trace = event.pop("event").translate(_ESCAPES), event.pop("exception", None)
    span = dict(event.pop("span", {}))
    inside = f"{span.pop('name')}{{{_fields(span)}}}: " if span else ""
    fields = _fields(event)
    line = f"{stamp} {level:>7} {inside}{name}: {message}{fields and ' '}{fields}"
    return line if trace is None else "\n  ".join([line, *trace.translate(_ESCAPES_OF_TRACES).splitlines()])


def _fields(fields: EventDict) -> str:
    return " ".join(f"{key}={value!r}" for key, value in fields.items())
