"""Deltas → what the client gets: an upstream's bytes as they came, and answers of the cache in the shape of the API."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson

from pagoda.gateway.call import UpstreamCall, UpstreamDelta, num_prompts
from pagoda.server.answers import CACHED_USAGE, DONE, Answer, CompletionAnswer
from pagoda.server.call import DeltaStream
from pagoda.server.chat_answer import ChatAnswer
from pagoda.server.choice import AnswerOptions
from pagoda.server.logprob_json import LogprobWriter
from pagoda.server.prompts import Prompt
from pagoda.types import Usage


class NoTokenizer:
    """Answers that have no tokens need none of it."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return ""

    def token_bytes(self, token_id: int) -> bytes:
        return b""


class Relayed(Answer):
    """What all of them share. An answer's usage is what the upstream says of it."""

    ends_with_done = True

    def __init__(self, call: UpstreamCall) -> None:
        options = call.body.get("stream_options") or {}
        wanted = AnswerOptions(
            n=call.requests[0].params.n,
            include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
            include_cost=call.include_cost,
        )
        prompts = [Prompt(())] * num_prompts(call.body)
        writer = LogprobWriter(NoTokenizer())  # type: ignore[arg-type]
        super().__init__(call, call.model or "", prompts, wanted, writer)
        self._usage: Usage | None = None

    async def whole(self, stream: DeltaStream) -> bytes:
        content: bytes | None = None
        async for deltas in stream:
            for delta in deltas:
                if isinstance(delta, UpstreamDelta):
                    content = delta.raw or content
                    self._note(delta)
                else:
                    self._keep(*self._take(delta))
        if content is None:
            return self._whole()
        return self._changed(content) if self._is_free or self._tells_cost else content

    async def events(self, stream: DeltaStream) -> AsyncIterator[bytes]:
        relayed = False
        async for deltas in stream:
            pieces = []
            for delta in deltas:
                if isinstance(delta, UpstreamDelta):
                    relayed = True
                    pieces.append(self._event_of(delta))
                else:
                    pieces.append(self._event(delta))
            if piece := b"".join(pieces):
                yield piece
        if relayed:
            yield DONE if self.ends_with_done else b""
        else:
            yield self._closing()

    def usage(self) -> dict[str, Any]:
        if self._usage is None or self._usage.cached:
            return dict(CACHED_USAGE) if self._is_free else _shape(Usage(0, 0, 0))
        shape = _shape(self._usage)
        if self._tells_cost and self.cost_usd is not None:
            shape["cost_usd"] = round(self.cost_usd(), 10)
        return shape

    @property
    def _is_free(self) -> bool:
        """Whether somebody else's computation, or the cache, has answered."""
        usages = [self._usage, *(choice.usage for choice in self.choices)]
        return any(usage is not None and usage.cached for usage in usages)

    @property
    def _tells_cost(self) -> bool:
        return self.options.include_cost and self.cost_usd is not None

    def _note(self, delta: UpstreamDelta) -> None:
        """Take in what the log and the metrics say of the answer."""
        if self.first_token is None and delta.says:
            self.first_token = time.monotonic()
        for index, reason in delta.finishes:
            if index < len(self.choices):
                self.choices[index].finish_reason = reason
        if delta.finish_reason is not None:
            self._usage = delta.usage
            self.choices[0].num_tokens = 0 if delta.usage is None else delta.usage.completion_tokens
            for choice in self.choices:
                choice.finish_reason = choice.finish_reason or delta.finish_reason

    def _event_of(self, delta: UpstreamDelta) -> bytes:
        self._note(delta)
        is_usage = delta.finish_reason is not None and delta.raw
        if not is_usage or not (self._is_free or self._tells_cost):
            return delta.raw
        data = delta.raw.partition(b"data:")[2].strip()
        return b"data: " + self._changed(data) + b"\n\n"

    def _changed(self, content: bytes) -> bytes:
        """The object with a usage that says what this client pays for."""
        body = orjson.loads(content)
        usage = body.get("usage") or {}
        body["usage"] = self.usage() if self._is_free else usage | {"cost_usd": self.usage()["cost_usd"]}
        return orjson.dumps(body)


class RelayedChat(Relayed, ChatAnswer):
    """An upstream's answer of /v1/chat/completions."""


class RelayedCompletion(Relayed, CompletionAnswer):
    """An upstream's answer of /v1/completions."""


class RelayedOther(Relayed, CompletionAnswer):
    """An answer that passes through the gateway whatever its shape: responses, messages, embeddings, scores."""

    ends_with_done = False


def _shape(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
