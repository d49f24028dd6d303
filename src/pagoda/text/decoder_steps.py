"""The steps of a tokenizer.json's decoder, each as a state that takes tokens one by one.

`tokenizers` decodes a whole list of tokens with each step in turn. Here a step hands on what no later token can change
and holds back the rest, so that the texts handed on, joined, are what `tokenizers` makes of the whole list. What the
steps do is defined by that library.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, Protocol

from pagoda.text.vocabulary import byte_level

Emit = Callable[[str], None]

_REPLACEMENT = "\ufffd"  # stands for what is not UTF-8
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")

# What `cleanup` of WordPiece and CTC does to a token, in this order.
_CLEANUP = (
    *[(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")],
    *[(" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")],
)


class Step(Protocol):
    """The state of one step within one text."""

    def push(self, piece: str) -> None:
        """Takes the next token of the step before; hands on what is certain."""

    def finish(self) -> None:
        """Hands on what was held back, now that no more tokens come."""

    def forget(self) -> None:
        """Drops what is held back, which has been shown already; keeps only the first bytes of a character."""


class Plain:
    """A step that holds nothing back."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def finish(self) -> None:
        pass

    def forget(self) -> None:
        pass


class Map(Plain):
    """Changes each token by itself: Replace and Strip before tokens are joined."""

    def __init__(self, emit: Emit, change: Callable[[str], str]) -> None:
        super().__init__(emit)
        self._change = change

    def push(self, piece: str) -> None:
        self._emit(self._change(piece))


class Spaced(Plain):
    """Tokens with a space between them: what a file without a decoder asks for."""

    _first = True

    def push(self, piece: str) -> None:
        self._emit(piece if self._first else " " + piece)
        self._first = False


class Metaspace(Plain):
    """Writes the mark ▁ as a space. The first token loses its marks where encoding put one there."""

    def __init__(self, emit: Emit, mark: str, prepended: bool) -> None:
        super().__init__(emit)
        self._mark = mark
        self._space = "" if prepended else " "

    def push(self, piece: str) -> None:
        self._emit(piece.replace(self._mark, self._space))
        self._space = " "


class WordPiece(Plain):
    """Puts a space before each token that does not begin with the prefix ##."""

    _first = True

    def __init__(self, emit: Emit, prefix: str, cleanup: bool) -> None:
        super().__init__(emit)
        self._prefix, self._cleanup = prefix, cleanup

    def push(self, piece: str) -> None:
        inner = piece if self._first else word_piece(piece, self._prefix)
        self._first = False
        self._emit(clean_up(inner) if self._cleanup else inner)


class CTC(Plain):
    """Drops repetitions and the padding token, and writes the delimiter of words as a space."""

    _last: str | None = None

    def __init__(self, emit: Emit, pad: str, delimiter: str, cleanup: bool) -> None:
        super().__init__(emit)
        self._pad, self._delimiter, self._cleanup = pad, delimiter, cleanup

    def push(self, piece: str) -> None:
        if piece == self._last:
            return
        self._last = piece
        shown = ctc(piece, self._pad, self._delimiter, self._cleanup)
        if shown:
            self._emit(shown)


class BPEDecoder:
    """Writes the suffix that ends a word as a space, but not in the last token of a text."""

    def __init__(self, emit: Emit, suffix: str) -> None:
        self._emit, self._suffix = emit, suffix
        self._held: str | None = None

    def push(self, piece: str) -> None:
        if self._held is not None:
            self._emit(self._held.replace(self._suffix, " "))
            self._held = None
        if self._suffix in piece:
            self._held = piece
        else:
            self._emit(piece)

    def finish(self) -> None:
        if self._held is not None:
            self._emit(self._held.replace(self._suffix, ""))
            self._held = None

    def forget(self) -> None:
        if self._held is not None:  # the space is not shown yet
            self._held = self._suffix if self._held.endswith(self._suffix) else None


class ByteFallback:
    """Makes characters of tokens like <0xC3>.

    Neighbouring bytes are one text if all of them together are UTF-8; otherwise each of them is replaced. So they are
    held back until a token of another kind follows.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._bytes = bytearray()

    def push(self, piece: str) -> None:
        byte = byte_value(piece) if len(piece) == 6 else None
        if byte is not None:
            self._bytes.append(byte)
            return
        if self._bytes:
            self.finish()
        self._emit(piece)

    def finish(self) -> None:
        if not self._bytes:
            return
        try:
            self._emit(self._bytes.decode())
        except UnicodeDecodeError:
            for _ in self._bytes:
                self._emit(_REPLACEMENT)
        self._bytes.clear()

    def forget(self) -> None:
        decoder = _Utf8Decoder("replace")
        decoder.decode(bytes(self._bytes))
        self._bytes = bytearray(decoder.getstate()[0])


class ByteLevel:
    """Reads each character as a byte, and the bytes as UTF-8. Joins the tokens."""

    def __init__(self, emit: Emit, spell: Callable[[str], bytes] = byte_level) -> None:
        self._emit, self._spell = emit, spell
        self._decoder = _Utf8Decoder("replace")

    def push(self, piece: str) -> None:
        text = self._decoder.decode(self._spell(piece))
        if text:
            self._emit(text)

    def finish(self) -> None:
        self._emit(self._decoder.decode(b"", final=True))

    def forget(self) -> None:
        pass  # the decoder holds only the beginning of a character


class TextStrip:
    """Takes up to `start` characters from the beginning of the joined text and up to `stop` from its end."""

    def __init__(self, emit: Emit, content: str, start: int, stop: int) -> None:
        self._emit, self._content = emit, content
        self._start, self._stop = start, stop
        self._held = 0  # characters `content` at the end of what came

    def push(self, piece: str) -> None:
        while self._start and piece:
            if not piece.startswith(self._content):
                self._start = 0
                break
            piece, self._start = piece[len(self._content) :], self._start - 1
        if not self._stop:
            self._emit(piece)
            return
        kept = piece.rstrip(self._content)
        num_held = len(piece) - len(kept)
        if not kept:  # more of the same: only the last ones can be cut off
            self._held += num_held
            num_ready = max(self._held - self._stop, 0)
            self._held -= num_ready
            self._emit(self._content * num_ready)
            return
        num_ready = max(num_held - self._stop, 0)
        self._emit(self._content * self._held + kept + self._content * num_ready)
        self._held = num_held - num_ready

    def finish(self) -> None:
        self._held = 0

    forget = finish


class TextReplace:
    """Replaces a string in the joined text."""

    def __init__(self, emit: Emit, pattern: str, content: str) -> None:
        self._emit, self._pattern, self._content = emit, pattern, content
        self._held = ""

    def push(self, piece: str) -> None:
        parts = (self._held + piece).split(self._pattern)
        rest = parts[-1]
        num_held = next(n for n in range(len(self._pattern) - 1, -1, -1) if rest.endswith(self._pattern[:n]))
        parts[-1], self._held = rest[: len(rest) - num_held], rest[len(rest) - num_held :]
        self._emit(self._content.join(parts))

    def finish(self) -> None:
        self._emit(self._held)
        self._held = ""

    def forget(self) -> None:
        self._held = ""


class Held:
    """Collects all tokens, and decodes them by `tokenizers` at the end of the text: for steps that need all of it."""

    def __init__(self, emit: Emit, decoder: Any, fused: bool) -> None:
        self._emit, self._decoder, self._fused = emit, decoder, fused
        self._pieces: list[str] = []

    def push(self, piece: str) -> None:
        self._pieces.append(piece)

    def finish(self) -> None:
        if self._pieces:
            self._emit(self._decoder.decode(["".join(self._pieces)] if self._fused else self._pieces))
        self._pieces = []

    def forget(self) -> None:
        self._pieces = []


def byte_value(piece: str) -> int | None:
    """The byte that a token like <0x0A> stands for."""
    if len(piece) != 6 or not piece.isascii() or not piece.startswith("<0x") or piece[5] != ">":
        return None
    digits = piece[3:5].removeprefix("+")  # Rust's number parser takes a sign, and so does the library
    return int(digits, 16) if all(char in "0123456789abcdefABCDEF" for char in digits) and digits else None


def word_piece(piece: str, prefix: str) -> str:
    """A token of WordPiece within a text."""
    return piece[len(prefix) :] if piece.startswith(prefix) else " " + piece


def clean_up(piece: str) -> str:
    """Takes spaces before punctuation away, within a token."""
    for dirty, clean in _CLEANUP:
        piece = piece.replace(dirty, clean)
    return piece


def ctc(piece: str, pad: str, delimiter: str, cleanup: bool) -> str:
    """A token of CTC as text."""
    shown = piece.replace(pad, "")
    return clean_up(shown).replace(delimiter, " ") if cleanup else shown


def strip(piece: str, content: str, start: int, stop: int) -> str:
    """A token without up to `start` characters `content` at its beginning and up to `stop` at its end."""
    first = 0
    while first < min(start, len(piece)) and piece[first] == content:
        first += 1
    last = len(piece)
    while len(piece) - last < stop and last > 0 and piece[last - 1] == content:
        last -= 1
    return piece[first:last]
