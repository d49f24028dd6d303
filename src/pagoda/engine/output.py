"""The text of one choice as it grows: token ids in, text that may be shown out."""

from __future__ import annotations

from typing import Protocol

from pagoda.text.detokenize import StopMatcher
from pagoda.types import SamplingParams


class TokenStream(Protocol):
    """Incremental detokenizer, see `pagoda.text`."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class OutputText:
    """A token stream, with stop strings looked for from token `min_tokens` on."""

    __slots__ = ("_matcher", "_min_tokens", "_num_pushed", "_stream")

    def __init__(self, stream: TokenStream, params: SamplingParams) -> None:
        self._stream = stream
        include = params.include_stop_str_in_output
        self._matcher = StopMatcher(params.stop, include_stop=include) if params.stop else None
        self._min_tokens = params.min_tokens
        self._num_pushed = 0

    def push(self, token_id: int) -> tuple[str, str | None]:
        """→ (text that may be shown, the stop string that it ran into)"""
        text = self._stream.push(token_id)
        self._num_pushed += 1
        if self._matcher is None or self._num_pushed <= self._min_tokens or not text:
            return text, None
        return self._matcher.push(text)

    def finish(self) -> tuple[str, str | None]:
        """No more tokens: what was held back. A stop string may still turn up in it."""
        text = self._stream.flush()
        if self._matcher is None:
            return text, None
        shown, matched = self._matcher.push(text) if text else ("", None)
        return (shown, matched) if matched is not None else (shown + self._matcher.flush(), None)
