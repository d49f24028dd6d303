"""A call → the question that a cache may know, and all that must be equal besides; or why it is none for a cache.

The prompt says itself what must be equal: it is cut around what the user said last, and the text before and after that
is part of the partition. So system prompt, tools, earlier turns and whatever else a chat template writes are compared
as the model reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import orjson

from pagoda.cache.entry import digest
from pagoda.cache.policy import Policy, Question, partition_of, sampling_class
from pagoda.server.call import Call
from pagoda.server.output_parser import OutputParser
from pagoda.types import SamplingParams

MAX_CHARS = 20_000  # that users said in a conversation: longer ones are seldom asked twice
CLASSED = ("temperature", "max_tokens", "n", "logprobs", "prompt_logprobs")  # compared otherwise than by equality


@dataclass(frozen=True, slots=True)
class Bypass:
    """Nothing for a cache, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the key under which equal ones join while it is being answered."""

    question: Question
    flight_key: str
    identity: str  # of the model that will answer


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model answers, by name and content."""

    name: str
    digest: str
    adapter_digest: Callable[[str], str]  # of the content that an adapter's name stands for now

    def of(self, call: Call) -> str:
        """Changes with whatever would answer this call. Raises ModelNotFoundError for an unknown adapter."""
        adapter = "" if call.adapter is None else f"{call.adapter} {self.adapter_digest(call.adapter)}"
        return f"{self.name} {self.digest} {adapter}"


class Identity(Protocol):
    """Which model answers a call."""

    def of(self, call: Call) -> str:
        """Changes with whatever would answer this call. Raises ModelNotFoundError."""


class Asks(Protocol):
    """Makes questions of calls."""

    @property
    def identity(self) -> Identity: ...

    def __call__(self, call: Call) -> Asked | Bypass: ...


class Asking:
    """Makes questions of calls for one model."""

    def __init__(self, policy: Policy, identity: ModelIdentity, decode: Callable[..., str]) -> None:
        """`decode(ids, skip_special=False)`: the text of a prompt."""
        self._policy = policy
        self.identity = identity
        self._decode = decode

    def __call__(self, call: Call) -> Asked | Bypass:
        if call.cache.mode == "off":
            return Bypass("off")
        if len(call.requests) != 1:
            return Bypass("several prompts")
        request = call.requests[0]
        if request.pooled:
            return Bypass("vectors")
        if (why := why_no_question(call, self._policy)) is not None:
            return Bypass(why)
        prompt = self._decode(list(request.prompt_token_ids), skip_special=False)
        said = [prompt] if call.messages is None else [text for text in map(text_of, _users(call.messages)) if text]
        if not said or sum(map(len, said)) > MAX_CHARS:
            return Bypass("too long" if said else "no text")
        ttl, rule = self._policy.lifetime(said, call.cache)
        if not ttl:
            return Bypass(f"rule: {rule}")
        identity = self.identity.of(call)
        question = self._question(call, identity, prompt, said[-1].strip(), (ttl, rule))
        exact = [question.partition, question.text, repr(request.prompt_token_ids), repr(request.params)]
        if call.deadline is not None:
            exact.append(call.id)  # when it ends, others go on
        return Asked(question, digest(exact), identity)

    def _question(self, call: Call, identity: str, prompt: str, text: str, lifetime: tuple[float, str]) -> Question:
        request = call.requests[0]
        place = prompt.rfind(text)
        before, after = (prompt[:place], prompt[place + len(text) :]) if place >= 0 else (prompt, "")
        parts = {
            "tenant": call.tenant,
            "salt": request.cache_salt,
            "model": identity,
            "kind": "completion" if call.messages is None else "chat",
            "before": before.rstrip(),  # spaces around the question are its own
            "after": after.lstrip(),
            "question found": str(place >= 0),
            "output": repr([(f.name, _stable(getattr(call.output, f.name))) for f in fields(call.output)]),
            "shown": repr(sorted(request.shown_token_ids)),
            "sampling": _sampling(request.params),
        }
        model = call.adapter or self.identity.name
        limit, (ttl, rule) = request.params.max_tokens, lifetime
        exact = call.messages is None and not text.endswith("?")  # a text to go on with: every letter of it counts
        return Question(text, partition_of(parts), call.tenant, model, limit, ttl, rule, call.cache.tags, exact)


def why_no_question(call: Call, policy: Policy) -> str | None:
    """What about how tokens are picked, or about the conversation, keeps a call from a cache; None: nothing."""
    params, messages = call.requests[0].params, call.messages
    if params.n > 1:
        return "n > 1"
    if params.logprobs is not None or params.prompt_logprobs is not None:
        return "logprobs"
    if params.temperature > policy.max_temperature:
        return "temperature"
    if messages is None:
        return None
    if any(m.get("role") in ("tool", "function") or m.get("tool_calls") for m in messages):
        return "tool calls"
    if any(text_of(m) is None for m in messages):
        return "not only text"
    return None if messages and messages[-1].get("role") == "user" else "no question"


def text_of(message: Mapping[str, Any]) -> str | None:
    """The text of a message; None: it holds something else, too."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    return None if None in parts else "\n".join(str(part) for part in parts)


def holds_calls(call: Call, text: str) -> bool:
    """Whether an answer calls tools."""
    if call.output.tool_format is None:
        return False
    parser = OutputParser(call.output)
    parser.push(text, 0, last=True)
    return bool(parser.num_calls)


def _users(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (message for message in messages if message.get("role") == "user")


def _sampling(params: SamplingParams) -> str:
    """All that shapes an answer. How long it may get is compared with how long the kept one is."""
    shape = {f.name: _stable(getattr(params, f.name)) for f in fields(params) if f.name not in CLASSED}
    return sampling_class(params.temperature) + orjson.dumps(shape, default=repr).decode()


def _stable(value: object) -> object:
    """The same text for the same value in every process."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return sorted((str(key), one) for key, one in value.items()) if isinstance(value, Mapping) else value
