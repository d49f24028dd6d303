"""Log lines for people (text) and for machines (json, one object a line), with the request's id in both.

Extra facts travel in `extra={"facts": {...}}`; the id comes from the context of the request, so that any line logged
while it is served carries it.
"""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal

import orjson

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def set_up_logging(log_format: Literal["text", "json"], level: str) -> None:
    """Send everything to stderr in that form. Uvicorn's own lines at warning and above only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pagoda").setLevel(level.upper())


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    given = {"request_id": request_id.get()} | getattr(record, "facts", {})
    return {name: value for name, value in given.items() if value is not None}


class TextFormatter(logging.Formatter):
    """12:03:44.105 info  request method=POST path=/v1/completions status=200"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        head = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} {record.getMessage()}"
        line = " ".join([head, *(f"{name}={_plain(value)}" for name, value in _facts(record).items())])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """{"time": "2025-01-31T12:03:44.105Z", "level": "info", "logger": …, "message": …, facts…}"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line | _facts(record), default=str).decode()


def _plain(value: object) -> str:
    """A value on one line: quoted when it has spaces or anything that could pass for a line of its own."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and " " not in text and text else orjson.dumps(text).decode()
