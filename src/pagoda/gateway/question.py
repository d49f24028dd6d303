"""A call → the question that the semantic cache may know, and all that must be equal besides.

The gateway has no tokenizer and needs none: what must be equal is the body, less what was said last and what shapes no
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pagoda.cache.entry import digest
from pagoda.cache.policy import Policy, Question, partition_of, sampling_class
from pagoda.gateway.call import CHAT, COMPLETIONS, UpstreamCall
from pagoda.server.call import Call
from pagoda.server.question import MAX_CHARS, Asked, Bypass, text_of, why_no_question

# They change how an answer is told, how long it may get (which is compared otherwise), or nothing.
SHAPELESS = frozenset(
    {"stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "user", "metadata",
     "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "priority", "request_id"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class UpstreamIdentity:
    """Which model answers, as far as its name tells."""

    names_of: Callable[[str | None], str]  # of a model that is asked for, on the upstreams

    def of(self, call: Call) -> str:
        return f"{call.adapter or ''} {self.names_of(call.adapter)}"


class UpstreamAsking:
    """Makes questions of calls."""

    def __init__(self, policy: Policy, identity: UpstreamIdentity) -> None:
        self._policy = policy
        self.identity = identity

    def __call__(self, call: Call) -> Asked | Bypass:
        assert isinstance(call, UpstreamCall)
        why = self._why_not(call)
        if why is not None:
            return Bypass(why)
        said = _said(call)
        if not said or sum(map(len, said)) > MAX_CHARS:
            return Bypass("too long" if said else "no text")
        ttl, rule = self._policy.lifetime(said, call.cache)
        if not ttl:
            return Bypass(f"rule: {rule}")
        identity, text, params = self.identity.of(call), said[-1].strip(), call.requests[0].params
        parts = {
            "tenant": call.tenant,
            "model": identity,
            "path": call.path,
            "body": _rest(call).decode(),
            "sampling": sampling_class(params.temperature),
        }
        exact = call.path == COMPLETIONS and not text.endswith("?")  # a text to go on with: every letter counts
        model, partition = call.model or "", partition_of(parts)
        tags, limit = call.cache.tags, params.max_tokens
        question = Question(text, partition, call.tenant, model, limit, ttl, rule, tags, exact)
        key: list[str | bytes] = [
            identity,
            call.path,
            call.tenant,
            orjson.dumps(call.body, option=orjson.OPT_SORT_KEYS),
        ]
        if call.deadline is not None:
            key.append(call.id)  # when it ends, others go on
        return Asked(question, digest(key), identity)

    def _why_not(self, call: UpstreamCall) -> str | None:
        if call.cache.mode == "off":
            return "off"
        if call.path not in (CHAT, COMPLETIONS):
            return "not a chat"
        if (why := why_no_question(call, self._policy)) is not None:
            return why
        has_text = call.messages is not None or isinstance(call.body.get("prompt"), str)
        return None if has_text else "several prompts"


def _said(call: UpstreamCall) -> list[str]:
    """What users said, what they said last at the end."""
    if call.messages is None:
        return [str(call.body["prompt"])]
    texts = [text_of(message) for message in call.messages if message.get("role") == "user"]
    return [text for text in texts if text and text.strip()]


def _rest(call: UpstreamCall) -> bytes:
    """The body without the question, the same bytes for the same meaning."""
    rest: dict[str, Any] = {name: value for name, value in call.body.items() if name not in SHAPELESS}
    if call.messages is None:
        del rest["prompt"]
    else:
        last: Mapping[str, Any] = call.messages[-1]
        rest["messages"] = [*call.messages[:-1], {name: value for name, value in last.items() if name != "content"}]
    return orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)
