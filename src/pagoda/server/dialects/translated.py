"""What a dialect makes of a body: the request that asks the same of us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from pagoda.server.infill import Infill
from pagoda.server.schema import ChatRequest, CompletionRequest
from pagoda.server.schema_messages import Message


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in another dialect."""

    body: ChatRequest | CompletionRequest
    extra: Any = None  # what its answer has to know of the dialect's request
    infill: Infill | None = None  # what the prompt is made of instead of the body's
    needs_context: int | None = None  # tokens that the model's context must have at least
    may_be_cut: bool = False  # a limit of tokens beyond the context means: until the context is full

    def after(self, messages: Sequence[Any]) -> Translated:
        """The same behind an earlier conversation. Instructions, which come first, are of this request alone."""
        assert isinstance(self.body, ChatRequest)
        earlier = [Message.model_validate(message) for message in messages]
        ours = self.body.messages
        first = 1 if ours and ours[0].role == "system" and (self.extra or {}).get("instructions") else 0
        body = self.body.model_copy(update={"messages": [*ours[:first], *earlier, *ours[first:]]})
        return replace(self, body=body)


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def object_of(arguments: str) -> Any:
    """The arguments of a call; empty where the answer was cut off in the middle of them."""
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return {}
