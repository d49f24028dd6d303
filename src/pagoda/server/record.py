"""What is known of an HTTP request from its head to its log line. Each has one, in its ASGI scope."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from pagoda.observe.tracing import RequestTrace

KEY = "pagoda.record"


@dataclass(slots=True)
class RequestRecord:
    """Made by the outermost middleware; the layers and the route below it add what they learn."""

    id: str
    start: float = field(default_factory=time.monotonic)
    tenant: str = ""  # the key that came; "" where none is asked for
    admin: bool = False  # it came with the admin key
    trace: RequestTrace | None = None
    headers: dict[str, str] = field(default_factory=dict)  # of the response, beside those that it has
    client_gone: bool = False  # before the answer was complete
    answer: dict[str, Any] = field(default_factory=dict)  # facts of the answer, for the log line


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of the request that `scope` belongs to."""
    record: RequestRecord = scope[KEY]
    return record
