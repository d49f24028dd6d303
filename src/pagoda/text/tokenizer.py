"""Text to token ids and back, the same whether the vocabulary came from GGUF or from `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pagoda.errors import UnsupportedError
from pagoda.text.detokenize import TokenStream
from pagoda.text.from_gguf import read_gguf
from pagoda.text.from_json import read_folder
from pagoda.text.vocabulary import Vocabulary


class TokenizerSource(Protocol):
    """The parts of a checkpoint that a tokenizer is made from."""

    @property
    def kind(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def path(self) -> Path: ...


class Encoder(Protocol):
    """Ids of a text without anything around it. With `parse_special`, names of control tokens become those tokens."""

    def __call__(self, text: str, parse_special: bool) -> list[int]: ...


class Tokenizer:
    """Encodes and decodes. Safe to use from several threads at once."""

    def __init__(self, vocabulary: Vocabulary, encoder: Encoder) -> None:
        self.vocabulary = vocabulary
        self._encoder = encoder

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary; the model's output matrix may have more rows, which stand for nothing."""
        return len(self.vocabulary.tokens)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token. A text has at least as many tokens as its length divided by this."""
        return max(map(len, self.vocabulary.tokens), default=1) or 1

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.vocabulary.eos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer."""
        return self.vocabulary.eos_ids

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        `add_special` puts BOS before and EOS after it, if the model wants them. Without `parse_special`, no text can
        become a control token. Lone surrogates, and in `bytes` what is not UTF-8, count as U+FFFD.
        """
        ids = self._encoder(_valid(text), parse_special)
        return [*self.vocabulary.prefix, *ids, *self.vocabulary.suffix] if add_special else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of the tokens; bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream(skip_special=skip_special)
        return "".join([stream.push(i) for i in ids]) + stream.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; for special tokens their name, for ids past the vocabulary nothing."""
        return self.vocabulary.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` leaves the token out."""
        return self.vocabulary.is_special(token_id)

    def stream(
        self, *, skip_special: bool = True, prompt_ids: Sequence[int] = (), shown_ids: Collection[int] = ()
    ) -> TokenStream:
        """A decoder for tokens that come one by one, after `prompt_ids`. `shown_ids` are shown even if special."""
        return TokenStream(
            self.vocabulary, skip_special=skip_special, prompt_ids=prompt_ids, shown_ids=frozenset(shown_ids)
        )


def load_tokenizer(checkpoint: TokenizerSource) -> Tokenizer:
    """The tokenizer that a checkpoint brings.

    Raises UnsupportedError for a kind that Pagoda does not read, FormatError for inconsistent data.
    """
    if checkpoint.kind == "gguf":
        return Tokenizer(*read_gguf(checkpoint.metadata))
    if checkpoint.kind == "safetensors":
        return Tokenizer(*read_folder(checkpoint.path, checkpoint.metadata))
    raise UnsupportedError(f"no tokenizer is known for checkpoints of kind {checkpoint.kind!r}")


def _valid(text: str | bytes) -> str:
    if isinstance(text, bytes):
        return text.decode("utf-8", "replace")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Through UTF-16, where surrogates that make a pair become the character that they stand for.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
