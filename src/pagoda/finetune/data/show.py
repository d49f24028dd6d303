"""Examples as people can check them: which tokens are learned."""

from __future__ import annotations

from itertools import groupby

from pagoda.finetune.data.render import Example
from pagoda.text.tokenizer import Tokenizer

LEARNED, REST = "\x1b[1;32m", "\x1b[2m"
PLAIN = "\x1b[0m"


def show(example: Example, tokenizer: Tokenizer, *, colors: bool) -> str:
    """The example's text, special tokens by name. What is learned is green, or stands in ⟦ ⟧."""
    parts = []
    for learned, group in groupby(
        zip(example.trained.tolist(), example.ids.tolist(), strict=True), lambda pair: pair[0]
    ):
        text = b"".join(tokenizer.token_bytes(token) for _, token in group).decode("utf-8", "replace")
        if colors:
            parts.append(f"{LEARNED if learned else REST}{text}{PLAIN}")
        else:
            parts.append(f"⟦{text}⟧" if learned else text)
    head = f"{example.where}: {len(example):,} tokens, {example.num_trained:,} learned"
    return f"{head}\n{''.join(parts)}"
