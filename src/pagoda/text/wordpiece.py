"""BERT's tokenizer from a GGUF file: words, divided greedily into the longest pieces that the vocabulary has.

GGUF writes a piece that begins a word with ▁ before it, and one that goes on with a word as it is; `tokenizers`, which
does the work, wants the second kind marked by ## instead. A file does not say whether texts are lowercased: they are
where no token has a capital letter.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer as Pipeline
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pagoda.text.vocabulary import SPACE

CONTINUES = "##"
MAX_WORD = 100  # characters; a longer word is unknown, as in BERT


class WordPieceEncoder:
    """Ids of ordinary text. Safe to use from several threads at once."""

    def __init__(self, tokens: Sequence[str], unk_id: int) -> None:
        vocabulary: dict[str, int] = {}
        for i, token in enumerate(tokens):
            vocabulary.setdefault(piece(token), i)
        self.lowercase = not any(has_capital(token) for token in tokens)
        unknown = piece(tokens[unk_id])
        model = WordPiece(
            vocab=vocabulary, unk_token=unknown, max_input_chars_per_word=MAX_WORD, continuing_subword_prefix=CONTINUES
        )
        self._pipeline = Pipeline(model)
        self._pipeline.normalizer = BertNormalizer(lowercase=self.lowercase)
        self._pipeline.pre_tokenizer = BertPreTokenizer()

    def __call__(self, text: str) -> list[int]:
        # A batch is encoded without the interpreter's lock, so that a long text keeps no other thread waiting.
        ids: list[int] = self._pipeline.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids


def piece(token: str) -> str:
    """A token of GGUF as `tokenizers` spells it."""
    if token.startswith(SPACE):
        return token[len(SPACE) :]
    return token if is_bracketed(token) else CONTINUES + token


def is_bracketed(token: str) -> bool:
    """Whether the token is written as [CLS] and [unused7] are, which stand for no text."""
    return len(token) > 2 and token.startswith("[") and token.endswith("]")


def has_capital(token: str) -> bool:
    return not is_bracketed(token) and token != token.lower()
