"""Tokenizers written a second time, slowly and from the definitions: what Pagoda's must equal, id for id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import regex

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, list[str]] = {
    "gpt-2": [GPT2_SPLIT],
    "smollm": [r"\p{N}", GPT2_SPLIT],
    "llama-bpe": [LLAMA3_SPLIT],
    "qwen2": [LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]"],
}


def byte_chars() -> dict[int, str]:
    """GPT-2's bytes_to_unicode: printable Latin-1 stands for itself, the rest moves up from U+0100."""
    kept = (
        list(range(ord("!"), ord("~") + 1)) + list(range(ord("¡"), ord("¬") + 1)) + list(range(ord("®"), ord("ÿ") + 1))
    )
    moved = [byte for byte in range(256) if byte not in kept]
    return {**{b: chr(b) for b in kept}, **{b: chr(256 + n) for n, b in enumerate(moved)}}


def isolate(pieces: Sequence[str], pattern: str) -> list[str]:
    """Every match a piece of its own, and what stands between matches too."""
    result: list[str] = []
    for piece in pieces:
        at = 0
        for match in regex.finditer(pattern, piece):
            result += [piece[at : match.start()], match.group()]
            at = match.end()
        result.append(piece[at:])
    return [piece for piece in result if piece]


class PlainBPE:
    """Byte-level BPE by ranks: join the best ranked pair everywhere, until none is left."""

    def __init__(self, ids: Mapping[str, int], merges: Sequence[str], pre: str) -> None:
        self.ids = ids
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in reversed(list(enumerate(merges)))}
        self.patterns = SPLITS[pre]
        self.whole_words = pre == "llama-bpe"
        self.chars = byte_chars()

    def encode(self, text: str) -> list[int]:
        pieces = [text]
        for pattern in self.patterns:
            pieces = isolate(pieces, pattern)
        return [i for piece in pieces for i in self._word(piece)]

    def _word(self, piece: str) -> list[int]:
        symbols = [self.chars[byte] for byte in piece.encode("utf-8")]
        if self.whole_words and "".join(symbols) in self.ids:
            return [self.ids["".join(symbols)]]
        while True:
            ranked = [(self.ranks[pair], n) for n, pair in enumerate(pairwise(symbols)) if pair in self.ranks]
            if not ranked:
                return [self.ids[symbol] for symbol in symbols if symbol in self.ids]
            _, n = min(ranked)
            symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]


class PlainSPM:
    """SentencePiece BPE by scores: of all neighbours that make a token join those of the best score, leftmost first."""

    def __init__(self, ids: Mapping[str, int], scores: Mapping[str, float], byte_ids: Mapping[int, int]) -> None:
        self.ids, self.scores, self.byte_ids = ids, scores, byte_ids

    def encode(self, text: str, *, add_space_prefix: bool = True) -> list[int]:
        if not text:
            return []
        symbols = list((" " if add_space_prefix else "") + text)
        symbols = ["▁" if symbol == " " else symbol for symbol in symbols]
        while True:
            pairs = [left + right for left, right in pairwise(symbols)]
            scored = [(-self.scores[pair], n) for n, pair in enumerate(pairs) if pair in self.scores]
            if not scored:
                break
            _, n = min(scored)
            symbols[n : n + 2] = [pairs[n]]
        known = [[self.ids[s]] if s in self.ids else [self.byte_ids[b] for b in s.encode("utf-8")] for s in symbols]
        return [i for ids in known for i in ids]
