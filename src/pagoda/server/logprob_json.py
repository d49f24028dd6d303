"""Logprobs in the three shapes that clients know: chat's, completions', and vLLM's prompt_logprobs."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from pagoda.server.prompts import Tokenizer
from pagoda.types import Logprob, TokenLogprobs

LOWEST = -9999.0  # JSON has no infinity
_MAX_UTF8 = 4  # bytes of the longest character


class LogprobWriter:
    """Writes logprobs with the tokens' text, or as "token_id:N" for `return_tokens_as_token_ids`."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False, skip_special: bool = True) -> None:
        """`skip_special`: the text of answers leaves control tokens out."""
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._skip_special = skip_special

    def offsets(self, prompt_ids: Sequence[int]) -> TextOffsets:
        """Where the tokens begin that go on behind `prompt_ids`."""
        return TextOffsets(self._tokenizer, prompt_ids, skip_special=self._skip_special)

    def text(self, token_id: int) -> str:
        """The token's own text; U+FFFD where its bytes are not whole characters."""
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def bytes_of(self, token_id: int) -> bytes:
        """The token's own bytes."""
        return self._tokenizer.token_bytes(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of many tokens, special ones included."""
        return self._tokenizer.decode(ids, skip_special=False)

    def chat(self, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """`choices[].logprobs` of chat completions."""
        content = [self._chat_entry(e.chosen) | {"top_logprobs": [self._chat_entry(t) for t in e.top]} for e in entries]
        return {"content": content, "refusal": None}

    def completion(
        self, entries: Sequence[TokenLogprobs | None], ids: Sequence[int], offsets: Sequence[int]
    ) -> dict[str, Any]:
        """`choices[].logprobs` of completions: parallel lists. `offsets` are the tokens' places in the text."""
        return {
            "text_offset": list(offsets),
            "token_logprobs": [None if e is None else max(e.chosen.logprob, LOWEST) for e in entries],
            "tokens": [self.text(token_id) for token_id in ids],
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


class TextOffsets:
    """Where the tokens of a choice begin in its text, in characters.

    A token that goes on with a character begins where that character does. Tokens that the text leaves out take no
    room in it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(b"".join(map(self._shown, prompt_ids[-_MAX_UTF8:])))
        self._end = 0

    def of_prompt(self, ids: Sequence[int], text: str) -> list[int]:
        """Where each token of a prompt begins in `text`, which shows it before the answer."""
        data = text.encode("utf-8", "replace")
        self._end += len(text)
        chars = [i for i, byte in enumerate(data) if byte & 0xC0 != 0x80]  # where each character begins
        return [max(bisect_right(chars, at) - 1, 0) if at < len(data) else len(text) for at in self._places(ids, data)]

    def of_answer(self, ids: Sequence[int]) -> list[int]:
        """Where each of the answer's next tokens begins."""
        offsets = []
        for token_id in ids:
            offsets.append(self._end)
            self._end += len(self._decoder.decode(self._shown(token_id)))
        return offsets

    def _places(self, ids: Sequence[int], data: bytes) -> Iterator[int]:
        """The byte of `data` at which each token begins.

        A frame like BOS, or the space that encoding puts first, may stand in tokens but not in the text.
        """
        at = 0
        for token_id in ids:
            yield min(at, len(data))
            token = self._tokenizer.token_bytes(token_id)
            if not data.startswith(token, at):
                if self._tokenizer.is_special(token_id):
                    continue
                token = token.removeprefix(b" ") if at == 0 else token
            at += len(token)

    def _shown(self, token_id: int) -> bytes:
        hidden = self._skip_special and self._tokenizer.is_special(token_id)
        return b"" if hidden else self._tokenizer.token_bytes(token_id)


def _all(entry: TokenLogprobs) -> list[Logprob]:
    """The likeliest, likeliest first, and the chosen one if it is not among them."""
    among = any(candidate.token_id == entry.chosen.token_id for candidate in entry.top)
    return [*entry.top] if among else [*entry.top, entry.chosen]
