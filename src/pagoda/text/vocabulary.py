"""A vocabulary says what every token id stands for: the bytes that it adds to a text, and what kind of token it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol


class TokenType(IntEnum):
    """Kinds of tokens, numbered as in GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # <|im_end|>: not text
    USER_DEFINED = 4  # text that is always one token, whatever stands around it
    UNUSED = 5
    BYTE = 6  # <0x0A>: one raw byte, for what has no token of its own


SPECIAL_TYPES = frozenset({TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED})

# How GGUF files spell a normal token:
#   bytes          each byte is one printable character (GPT-2)
#   sentencepiece  UTF-8, a space is written ▁
Spelling = Literal["bytes", "sentencepiece"]

SPACE = "▁"  # how SentencePiece writes a space


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


_BYTE_OF_CHAR = {ord(char): byte for byte, char in enumerate(byte_alphabet())}


def byte_level(text: str) -> bytes:
    """Bytes of a token in GPT-2's alphabet; text outside of the alphabet stands for itself, as in `tokenizers`."""
    try:
        return bytes([_BYTE_OF_CHAR[ord(char)] for char in text])
    except KeyError:
        return raw_bytes(text)


def raw_bytes(text: str) -> bytes:
    """UTF-8 of a vocabulary entry; bytes that were not UTF-8 in the file come back as they were."""
    return text.encode("utf-8", "surrogateescape")


class DecoderRun(Protocol):
    """How far the decoding of one text has come."""

    def push(self, token: Any) -> str:
        """The text that is certain with this token."""

    def finish(self) -> str:
        """What was held back."""

    def prime(self, tokens: Sequence[Any]) -> None:
        """Takes tokens that stand before the text and are not shown with it."""


class Decoder(Protocol):
    """What the tokens of a tokenizer.json become."""

    def token_bytes(self, token: str) -> bytes:
        """What a token of this spelling adds within a text."""

    def open(self) -> DecoderRun:
        """The state of a new text."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model, V of them, and the ids that frame its prompts and end its answers."""

    tokens: Sequence[str]  # [V] as the file spells them
    types: Sequence[int]  # [V] TokenType
    spelling: Spelling | Decoder  # how tokens become text: as in GGUF files, or as a tokenizer.json says
    bos_id: int | None = None
    eos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()  # every id that ends an answer
    prefix: tuple[int, ...] = ()  # what `add_special` puts before a text
    suffix: tuple[int, ...] = ()  # and after it
    rstrip_ids: frozenset[int] = frozenset()  # of GGUF files: tokens that take the white space behind them with them
    strip_leading_space: bool = False  # of "sentencepiece": the space that encoding puts first goes in decoding
    _cache: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is not text. Ids past the vocabulary (padding of the output matrix) are special too."""
        return not 0 <= token_id < len(self.tokens) or self.types[token_id] in SPECIAL_TYPES

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to the text; for special tokens their name, for ids past the end nothing."""
        found = self._cache.get(token_id)
        if found is None:
            found = self._cache[token_id] = self._spell(token_id) if 0 <= token_id < len(self.tokens) else b""
        return found

    def _spell(self, token_id: int) -> bytes:
        text, kind = self.tokens[token_id], self.types[token_id]
        if kind in SPECIAL_TYPES:
            return raw_bytes(text)
        if not isinstance(self.spelling, str):
            return self.spelling.token_bytes(text)
        if kind == TokenType.BYTE and is_byte_token(text):
            return bytes([int(text[3:5], 16)])
        if self.spelling == "sentencepiece":
            return raw_bytes(text.replace(SPACE, " "))
        return raw_bytes(text) if kind == TokenType.USER_DEFINED else byte_level(text)


def is_byte_token(text: str) -> bool:
    """Whether a vocabulary entry is spelled like <0x0A>."""
    if len(text) != 6 or not text.startswith("<0x") or text[5] != ">":
        return False
    return all(char in "0123456789abcdefABCDEF" for char in text[3:5])
