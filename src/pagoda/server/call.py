"""What travels through the layers that answer: one `Call` down, a stream of deltas up.

A layer gets a call and what lies below it. It may refuse the call, change it, answer by itself with deltas such as the
engine would send, or pass it on and watch the deltas that come back. `service.Model` lists the layers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pagoda.cache.policy import DEFAULT_OPTIONS, CacheOptions
from pagoda.observe.tracing import Part
from pagoda.routing.prefixes import prefix_hashes
from pagoda.server.output_plan import OutputPlan
from pagoda.types import Delta, Request

UPSTREAM = "X-Pagoda-Upstream"  # the header that says which server behind a gateway has answered


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to be answered: what was asked, and the token requests made from it, one a prompt."""

    id: str  # of the answer
    requests: tuple[Request, ...]
    messages: tuple[Mapping[str, Any], ...] | None = None  # the conversation as it was asked; None: text completions
    tenant: str = ""
    output: OutputPlan = field(default_factory=OutputPlan)  # what is to become of the text
    adapter: str | None = None  # the name that was asked for, None: the model itself
    deadline: float | None = None  # time.monotonic() seconds at which the answer is worth nothing any more
    start_by: float | None = None  # and at which it is, if there is no token yet
    cache: CacheOptions = DEFAULT_OPTIONS  # what the request asks of the semantic cache
    headers: dict[str, str] = field(default_factory=dict)  # of the response; layers add to them before they answer
    is_estimate: bool = False  # its prompts' lengths are; the last delta's usage tells them, of all that was asked
    parts: list[Part] = field(default_factory=list)  # what layers did for it, for its trace

    def prefix_hashes(self) -> tuple[int, ...]:
        """For each 64 tokens of the first prompt, a hash of them and all before. Tenants and adapters share none."""
        request = self.requests[0]
        ids = np.asarray(request.prompt_token_ids, np.int32).tobytes()
        return prefix_hashes([ids], salt=f"{self.tenant} {self.adapter} {request.cache_salt}")


class DeltaStream(Protocol):
    """The deltas of a call as they come. Whoever opened it closes it, however it ends."""

    def __aiter__(self) -> AsyncIterator[list[Delta]]:
        """All that has come since the last time, never empty; ends when every choice has finished."""

    def close(self) -> None:
        """Abort what has not finished. Idempotent."""


Serve = Callable[[Call], Awaitable[DeltaStream]]
Layer = Callable[[Call, Serve], Awaitable[DeltaStream]]


def fold(layers: Sequence[Layer], innermost: Serve) -> Serve:
    """`layers`, outermost first, around `innermost`, as one."""
    serve = innermost
    for layer in reversed(layers):
        serve = _around(layer, serve)
    return serve


def _around(layer: Layer, inner: Serve) -> Serve:
    return lambda call: layer(call, inner)
