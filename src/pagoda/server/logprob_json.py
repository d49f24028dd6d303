"""Logprobs in the three shapes that clients know: chat's, completions', and vLLM's prompt_logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagoda.server.prompts import Tokenizer
from pagoda.types import Logprob, TokenLogprobs

LOWEST = -9999.0  # JSON has no infinity


class LogprobWriter:
    """Writes logprobs with the tokens' text, or as "token_id:N" for `return_tokens_as_token_ids`."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def text(self, token_id: int) -> str:
        """The token's own text; U+FFFD where its bytes are not whole characters."""
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of many tokens, special ones included."""
        return self._tokenizer.decode(ids, skip_special=False)

    def chat(self, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """`choices[].logprobs` of chat completions."""
        content = [self._chat_entry(e.chosen) | {"top_logprobs": [self._chat_entry(t) for t in e.top]} for e in entries]
        return {"content": content, "refusal": None}

    def completion(self, entries: Sequence[TokenLogprobs | None], ids: Sequence[int], offset: int) -> dict[str, Any]:
        """`choices[].logprobs` of completions: parallel lists. `offset` is the first token's place in the text."""
        tokens = [self.text(token_id) for token_id in ids]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "text_offset": offsets,
            "token_logprobs": [None if e is None else max(e.chosen.logprob, LOWEST) for e in entries],
            "tokens": tokens,
            "top_logprobs": [None if e is None else self._by_text(e) for e in entries],
        }

    def prompt(self, entries: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
        """`prompt_logprobs`, keyed by token id; null for the first token, which nothing predicts."""
        return [None if e is None else {str(c.token_id): self._prompt_entry(c) for c in _all(e)} for e in entries]

    def _by_text(self, entry: TokenLogprobs) -> dict[str, float]:
        texts: dict[str, float] = {}
        for candidate in _all(entry):  # several ids may share a text: the likeliest, which comes first, stands for it
            texts.setdefault(self.text(candidate.token_id), max(candidate.logprob, LOWEST))
        return texts

    def _chat_entry(self, entry: Logprob) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(entry.token_id)
        return {"token": self.text(entry.token_id), "logprob": max(entry.logprob, LOWEST), "bytes": list(raw)}

    def _prompt_entry(self, entry: Logprob) -> dict[str, Any]:
        text = self._tokenizer.token_bytes(entry.token_id).decode("utf-8", "replace")
        return {"logprob": max(entry.logprob, LOWEST), "rank": entry.rank, "decoded_token": text}


def _all(entry: TokenLogprobs) -> list[Logprob]:
    """The likeliest, likeliest first, and the chosen one if it is not among them."""
    among = any(candidate.token_id == entry.chosen.token_id for candidate in entry.top)
    return [*entry.top] if among else [*entry.top, entry.chosen]
