"""A byte-level BPE tokenizer of 272 tokens, so that any text has ids and any ids have text."""

from __future__ import annotations

from typing import Any


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


MERGES = ["t h", "i n", "e r", "a n", "o n", "Ġ t", "Ġ a", "h e", "Ġt he", "i s", "o r", "r e", "n d", "a t"]
TOKENS = [*_byte_characters(), "<s>", "</s>", *("".join(merge.split()) for merge in MERGES)]


def tokenizer_json() -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    specials = [{"id": i, "content": TOKENS[i], "special": True} for i in (256, 257)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [special | flags for special in specials],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(TOKENS)},
            "merges": MERGES,
        },
    }
