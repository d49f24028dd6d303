"""An upstream's answer → deltas, with its bytes as they came.

`Relay` reads a stream of events or a whole body. What it must understand is little: text (for the cache), ends, usage
(for budgets and costs) and errors; the rest passes through unread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from pagoda.gateway.call import CHAT, COMPLETIONS, TOKEN_BYTES, UpstreamCall, UpstreamDelta
from pagoda.types import Usage

MAX_EVENT = 32 * 1024 * 1024  # bytes
PLAIN = frozenset({"role", "content"})  # of a message that a cache can give again


class BadAnswerError(Exception):
    """The upstream's answer is none, or is an error; `body`: the error as it told it."""

    def __init__(self, message: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.body = body


class Relay:
    """One answer as it comes: `push` and `end` for a stream, `whole` for a body."""

    def __init__(self, call: UpstreamCall) -> None:
        self._call = call
        self._id = call.requests[0].id
        self._is_ours = call.path in (CHAT, COMPLETIONS)  # otherwise only usage is looked for
        self._wants_usage = bool((call.body.get("stream_options") or {}).get("include_usage"))
        self._rest = b""
        self._usage: Usage | None = None
        self._usage_event = b""
        self._ended: dict[int, str] = {}  # choice → why
        self._plain = True  # all that was said is text
        self._num_texts = 0
        self.done = False  # the stream has said so

    def push(self, piece: bytes) -> list[UpstreamDelta]:
        """The deltas of more bytes of a stream. Raises BadAnswerError."""
        if self._rest or b"\r" in piece:
            piece = (self._rest + piece).replace(b"\r\n", b"\n")
        *events, self._rest = piece.split(b"\n\n")
        if len(self._rest) > MAX_EVENT:
            raise BadAnswerError(f"an event of more than {MAX_EVENT} bytes")
        return [delta for event in events if (delta := self._event(event)) is not None]

    def end(self) -> UpstreamDelta:
        """The last delta of a stream. Raises BadAnswerError when the answer is not whole."""
        if self._is_ours and not self._ended:
            raise BadAnswerError("the answer ended before its time")
        return self._last(self._usage_event)

    def whole(self, data: bytes) -> list[UpstreamDelta]:
        """The deltas of an answer in one piece. Raises BadAnswerError."""
        body = _object(data)
        if body is None:
            raise BadAnswerError(f"its answer is not a JSON object: {data[:80]!r}")
        self._look_for_usage(body)
        text = ""
        if self._is_ours:
            choices = _rows(body.get("choices"))
            if not choices:
                raise BadAnswerError("its answer has no choices", body if "error" in body else None)
            text = "".join(self._text(choice, choice.get("message")) for choice in choices)
        return [self._delta(text, data, tuple(self._ended.items())), self._last(b"")]

    @property
    def told_usage(self) -> bool:
        """Whether the upstream has said how many tokens there were."""
        return self._usage is not None

    def estimate(self) -> Usage:
        """Usage so far of an answer that tells none: a token an event, and one for four bytes of what was asked."""
        num_bytes = len(self._call.requests[0].prompt_token_ids) * TOKEN_BYTES
        return self._usage or Usage(max(1, num_bytes // TOKEN_BYTES), self._num_texts, 0)

    def _event(self, event: bytes) -> UpstreamDelta | None:
        data = b"".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return None
        if data == b"[DONE]":
            self.done = True
            return None
        body, raw = _object(data), event.lstrip(b"\n") + b"\n\n"
        if body is None:
            return self._delta("", raw, ())
        if body.get("error") and self._is_ours:
            raise BadAnswerError("it broke its answer off", body)
        self._look_for_usage(body)
        if not self._is_ours:
            return self._delta("", raw, ())
        choices = _rows(body.get("choices"))
        if not choices and "usage" in body:
            self._usage_event = raw if self._wants_usage else b""
            return None
        before = len(self._ended)
        text = "".join(self._text(choice, choice.get("delta")) for choice in choices)
        ended = tuple(self._ended.items())[before:]
        index = choices[0].get("index", 0) if choices else 0
        says = bool(text or ended or not choices or any(map(_says, choices)))
        self._num_texts += bool(text)
        return replace(self._delta(text, raw, ended), index=index, says=says)

    def _text(self, choice: Mapping[str, Any], message: Any) -> str:
        """The text of a choice, or of what is new of it. Notes its end, and whether it says more than text."""
        if choice.get("finish_reason"):
            self._ended[int(choice.get("index") or 0)] = str(choice["finish_reason"])
        if choice.get("logprobs"):
            self._plain = False
        if not isinstance(message, dict):
            return _text_of(choice.get("text"))
        if any(value for name, value in message.items() if name not in PLAIN):
            self._plain = False
        return _text_of(message.get("content"))

    def _delta(self, text: str, raw: bytes, finishes: tuple[tuple[int, str], ...]) -> UpstreamDelta:
        return UpstreamDelta(self._id, 0, text, (), raw=raw, finishes=finishes)

    def _last(self, raw: bytes) -> UpstreamDelta:
        may_be_kept = self._is_ours and self._plain and list(self._ended.values()) == ["stop"]
        reason: Any = "stop" if may_be_kept else "length"
        return UpstreamDelta(self._id, 0, "", (), finish_reason=reason, usage=self.estimate(), raw=raw)

    def _look_for_usage(self, body: Mapping[str, Any]) -> None:
        """Take in what the upstream says of tokens, in the words of any of the APIs."""
        places: Iterable[Any] = (body, body.get("response"), body.get("message"))
        for place in places:
            found = place.get("usage") if isinstance(place, dict) else None
            if isinstance(found, dict) and found:
                self._usage = usage_of(found, self._usage)


def usage_of(fields: Mapping[str, Any], before: Usage | None = None) -> Usage:
    """Counts in the words of OpenAI's APIs, and of Anthropic's messages, which tell them in two parts."""

    def count(*names: str) -> int | None:
        return next((value for name in names if isinstance(value := fields.get(name), int)), None)

    prompt, completion = count("prompt_tokens", "input_tokens"), count("completion_tokens", "output_tokens")
    cached = count("cache_read_input_tokens", "prompt_cache_hit_tokens")
    for name in ("prompt_tokens_details", "input_tokens_details"):
        if isinstance(details := fields.get(name), dict) and isinstance(details.get("cached_tokens"), int):
            cached = details["cached_tokens"]
    old = before or Usage(0, 0, 0)
    return Usage(
        old.prompt_tokens if prompt is None else prompt,
        old.completion_tokens if completion is None else completion,
        old.cached_tokens if cached is None else cached,
    )


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _rows(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else ""


def _says(choice: Mapping[str, Any]) -> bool:
    """Whether a chunk tells more than that an answer begins."""
    delta = choice.get("delta")
    return not isinstance(delta, dict) or any(value for name, value in delta.items() if name != "role")
