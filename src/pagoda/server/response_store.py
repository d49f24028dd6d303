"""Responses of /v1/responses that may be asked for again or gone on with: in memory, bounded, for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_RESPONSES = 4096
MAX_BYTES = 64 * 1024 * 1024  # of responses and conversations together
LIFETIME_S = 3600.0


@dataclass(slots=True)
class StoredResponse:
    """One response. While it is made in the background, `cancel` ends it."""

    content: bytes  # the response object
    messages: bytes | None = None  # the conversation up to and with the answer, a JSON list; None: no answer (yet)
    cancel: Callable[[], None] | None = None
    kept: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Copy both: bytes that orjson 3.13 has made occupy the room in which they were written, at least 4 KB."""
        self.content = memoryview(self.content).tobytes()
        if self.messages is not None:
            self.messages = memoryview(self.messages).tobytes()

    @property
    def num_bytes(self) -> int:
        return len(self.content) + len(self.messages or b"")


class ResponseStore:
    """By tenant and id: nobody sees a response of another key. Lives on the event loop."""

    def __init__(
        self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES, lifetime_s: float = LIFETIME_S
    ) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._lifetime_s = lifetime_s
        self._kept: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()  # the oldest first
        self._num_bytes = 0

    def put(self, tenant: str, id: str, response: StoredResponse) -> None:
        """Keep it, in place of an earlier state of it. The oldest ones go where there is no room."""
        self.pop(tenant, id)
        self._kept[tenant, id] = response
        self._num_bytes += response.num_bytes
        while self._kept and (len(self._kept) > self._max_responses or self._num_bytes > self._max_bytes):
            self.pop(*next(iter(self._kept)))

    def get(self, tenant: str, id: str) -> StoredResponse | None:
        """None: it was never kept, or is not any more."""
        now = time.monotonic()
        while self._kept and now - next(iter(self._kept.values())).kept > self._lifetime_s:
            self.pop(*next(iter(self._kept)))
        return self._kept.get((tenant, id))

    def pop(self, tenant: str, id: str) -> StoredResponse | None:
        """Forget it. → what it was"""
        found = self._kept.pop((tenant, id), None)
        if found is not None:
            self._num_bytes -= found.num_bytes
        return found

    def check(self) -> None:
        """The invariants, for tests."""
        assert self._num_bytes == sum(response.num_bytes for response in self._kept.values())
        assert self._num_bytes <= self._max_bytes
        assert len(self._kept) <= self._max_responses
