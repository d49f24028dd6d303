"""From deltas to an answer that can be kept, and from a kept answer to deltas again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from pagoda.cache.entry import Answer
from pagoda.server.call import Call
from pagoda.server.flight import NO_COST
from pagoda.server.question import holds_calls
from pagoda.types import Delta


class Replay:
    """An answer that was kept, as deltas."""

    def __init__(self, request_id: str, answer: Answer) -> None:
        self._request_id = request_id
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        answer = self._answer
        deltas = [Delta(self._request_id, 0, text, token_ids, usage=NO_COST) for text, token_ids in answer.pieces]
        deltas[-1] = replace(deltas[-1], finish_reason=answer.finish_reason, stop_reason=answer.stop_reason)
        yield deltas

    def close(self) -> None:
        """Nothing is under way."""


def answer_of(call: Call, deltas: list[Delta]) -> Answer | None:
    """The answer that these deltas are, if it may be given again: ended by itself, with some text, and no calls."""
    if not deltas or deltas[-1].finish_reason != "stop":
        return None
    pieces = tuple(
        (delta.text, delta.token_ids) for delta in deltas if delta.text or delta.token_ids or delta.finish_reason
    )
    usage = deltas[-1].usage
    prompt_tokens = len(call.requests[0].prompt_token_ids) if usage is None else usage.prompt_tokens
    num_tokens = usage.completion_tokens if usage is not None else sum(len(ids) for _, ids in pieces)
    answer = Answer(pieces, "stop", deltas[-1].stop_reason, prompt_tokens, num_tokens)
    return answer if answer.text.strip() and not holds_calls(call, answer.text) else None
