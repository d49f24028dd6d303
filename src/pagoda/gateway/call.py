"""What the gateway's layers pass on: a call with its body as it came, and deltas with the bytes that the upstream sent.

A body is sent on as it is, so what an upstream knows and Pagoda does not is not lost. Taken out are the fields that are
the gateway's own: `cache`, `deadline_ms` and `include_cost`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import TypeAdapter

from pagoda.cache.policy import DEFAULT_OPTIONS
from pagoda.errors import RequestError
from pagoda.routing.prefixes import PROCESS_SECRET, prefix_hashes
from pagoda.server.call import Call
from pagoda.server.json_body import parse_json
from pagoda.server.requests import new_id
from pagoda.server.schema import CacheWish
from pagoda.types import Delta, Request, SamplingParams

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OWN_FIELDS = ("cache", "deadline_ms", "include_cost")
TOKEN_BYTES = 4  # of text, where only an estimate is to be had
MAX_DEADLINE_MS = 86_400_000

_WISH: TypeAdapter[CacheWish] = TypeAdapter(CacheWish)


@dataclass(frozen=True, slots=True)
class UpstreamCall(Call):
    """One HTTP request for an upstream. Its one token request has zeros for a prompt, as many as it may have tokens."""

    path: str = CHAT
    body: Mapping[str, Any] = field(default_factory=dict)  # without what is the gateway's own
    streams: bool = False
    prefix: tuple[int, ...] = ()  # hashes of how it begins
    prefix_bytes: int = 0  # of all that they begin
    session: str | None = None
    include_cost: bool = False

    def prefix_hashes(self) -> tuple[int, ...]:
        return self.prefix

    @property
    def model(self) -> str | None:
        """The model that is asked for."""
        return self.adapter


@dataclass(frozen=True, slots=True)
class UpstreamDelta(Delta):
    """A delta with the bytes that say it: an event, or a whole body. `text` is what a cache keeps of it.

    The last delta of a call comes after all that was said: it has a finish_reason ("stop" for an answer that may be
    given again, otherwise "length"), the usage of the whole call, and the event that tells of that.
    """

    raw: bytes = b""
    finishes: tuple[tuple[int, str], ...] = ()  # choices that end here, and why
    says: bool = True  # something of the answer, not only that one begins


def read_call(
    data: bytes,
    path: str,
    *,
    tenant: str,
    prefix: str,
    session: str | None = None,
    secret: bytes = PROCESS_SECRET,
) -> UpstreamCall:
    """The call that a body makes. `prefix` begins its id, `secret` is of hashes of how it begins.

    Raises RequestError for what the gateway itself reads.
    """
    parsed = parse_json(data)
    if not isinstance(parsed, dict):
        raise RequestError("the body must be a JSON object")
    body = {name: value for name, value in parsed.items() if name not in OWN_FIELDS}
    model = _of_type(body, "model", str)
    streams = bool(_of_type(body, "stream", bool))
    arrival, id = time.monotonic(), new_id(prefix)
    request = Request(f"{id}-0", (0,) * (len(data) // TOKEN_BYTES), _params(body), arrival, tenant=tenant)
    deadline_ms = _of_type(parsed, "deadline_ms", int)
    if deadline_ms is not None and not 1 <= deadline_ms <= MAX_DEADLINE_MS:
        raise RequestError(f"deadline_ms is {deadline_ms}, not 1 to {MAX_DEADLINE_MS}", param="deadline_ms")
    beginning = _beginning(body)
    return UpstreamCall(
        id,
        (request,),
        _messages(body) if path == CHAT else None,
        tenant,
        adapter=model,
        deadline=None if deadline_ms is None else arrival + deadline_ms / 1000,
        cache=DEFAULT_OPTIONS if parsed.get("cache") is None else _wish(parsed["cache"]),
        is_estimate=True,
        path=path,
        body=body,
        streams=streams,
        prefix=prefix_hashes(beginning, tenant, secret),
        prefix_bytes=sum(map(len, beginning)) + len(beginning) - 1,
        session=_session(tenant, session or _of_type(body, "prompt_cache_key", str)),
        include_cost=bool(_of_type(parsed, "include_cost", bool)),
    )


def _session(tenant: str, name: str | None) -> str | None:
    """Sessions of two tenants are never the same."""
    return None if name is None else f"{tenant} {name[:256]}"


def num_prompts(body: Mapping[str, Any]) -> int:
    """How many prompts a completion continues."""
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return len(prompt) if several and isinstance(prompt, list) else 1


def limit_of(body: Mapping[str, Any]) -> int | None:
    """The most tokens that are asked for; None: as many as there will be."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if isinstance(limit := body.get(name), int) and limit > 0:
            return limit
    return None


def _params(body: Mapping[str, Any]) -> SamplingParams:
    """What layers look at. Whether values are right is for the upstream to say."""
    n, temperature = body.get("n"), body.get("temperature")
    asked = body.get("logprobs") or body.get("top_logprobs")
    return SamplingParams(
        n=n if isinstance(n, int) and 1 <= n <= 1024 else 1,
        max_tokens=limit_of(body),
        temperature=float(temperature) if isinstance(temperature, (int, float)) else 1.0,
        logprobs=0 if asked else None,
        prompt_logprobs=0 if body.get("prompt_logprobs") or body.get("echo") else None,
    )


def _messages(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with a message at least", param="messages")
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else 0
        if content is not None and not isinstance(content, (str, list)):
            raise RequestError(f"messages[{place}] is no message", param=f"messages[{place}]")
    return tuple(messages)


def _beginning(body: Mapping[str, Any]) -> list[bytes]:
    """What a prompt is made of, in the order in which models read it."""
    parts = [body.get("model"), body.get("tools"), body.get("system"), body.get("instructions")]
    for name in ("messages", "input", "prompt"):
        value = body.get(name)
        parts += value if isinstance(value, list) else [value]
    return [_bytes(part) for part in parts if part is not None]


def _bytes(part: Any) -> bytes:
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, dict) and isinstance(part.get("content"), str):
        return f"{part.get('role')}\n{part['content']}".encode()
    return orjson.dumps(part)


def _wish(value: Any) -> Any:
    return _WISH.validate_python({"mode": value} if isinstance(value, str) else value).options


def _of_type(body: Mapping[str, Any], name: str, kind: type) -> Any:
    """The field, of its type or None. RequestError: of another."""
    value = body.get(name)
    wrong = isinstance(value, bool) and kind is not bool
    if value is not None and (wrong or not isinstance(value, kind)):
        words: dict[type, str] = {str: "text", bool: "true or false", int: "a whole number"}
        raise RequestError(f"{name} must be {words[kind]}", param=name)
    return value


def with_model(body: Mapping[str, Any], model: str | None, *, usage: bool) -> bytes:
    """The body for an upstream that calls the model so. `usage`: a stream is to end with its usage."""
    changed = {**body, "model": model} if model else dict(body)
    if usage:
        options = changed.get("stream_options")
        changed["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return orjson.dumps(changed)
