"""BPE over characters, with spaces written ▁ and bytes for what has no token: Gemma 4's in GGUF files.

A text is cut at runs of line feeds alone. Such a run is the token that it is as a whole, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE

from pagoda.errors import FormatError
from pagoda.text.bpe import merge_pairs
from pagoda.text.vocabulary import SPACE

_PIECES = re.compile(r"[^\n]+|\n+")


class PlainBytePairEncoder:
    """Encodes ordinary text, in which special tokens mean nothing."""

    def __init__(self, ids: Mapping[str, int], merges: Sequence[str], byte_ids: Mapping[int, int]) -> None:
        """`ids` are the tokens that text may become, `byte_ids` those of single bytes. FormatError for merges that make
        or need no token."""
        self._ids = ids
        spelled = {f"<0x{byte:02X}>": i for byte, i in byte_ids.items()}
        try:
            model = BPE(vocab={**ids, **spelled}, merges=merge_pairs(merges), byte_fallback=True)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise FormatError(f"tokenizer.ggml.merges: {error}") from error
        self._tokenizer = Tokenizer(model)

    def __call__(self, text: str) -> list[int]:
        pieces: list[str] = _PIECES.findall(text.replace(" ", SPACE))
        # A batch is encoded without the interpreter's lock, so that a long text keeps no other thread waiting.
        encoded = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        found: list[int] = []
        for piece, encoding in zip(pieces, encoded, strict=True):
            whole = self._ids.get(piece) if piece[0] == "\n" else None
            found += encoding.ids if whole is None else [whole]
        return found
