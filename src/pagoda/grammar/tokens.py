"""llguidance's view of a vocabulary: the bytes of each token, and how the model's tokenizer cuts a text.

Made once for a model, when the first grammar is compiled: it takes 0.1 s for 49,000 tokens and 0.4 s for 150,000.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Protocol

from llguidance import LLTokenizer

from pagoda.errors import UnsupportedError

_LONGEST = 64  # bytes of a token that `_longest` looks for
_BEFORE = "\x02"  # a character that no tokenizer joins with what follows


class GrammarTokenizer(Protocol):
    """What grammars need of `pagoda.text.tokenizer.Tokenizer`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> Collection[int]: ...

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


class _Wrapper:
    """The attributes and the call by which llguidance knows a tokenizer that is written in Python."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(i) for i in ids]
        self.special_token_ids = [i for i in ids if tokenizer.is_special(i)]
        self.eos_token_id = min(tokenizer.eos_ids)
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(_BEFORE, add_special=False)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text that does not stand at the start, so that no space is put before it."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode(_BEFORE.encode() + data, add_special=False)[len(self._before) :]
        return ids if b"".join([self.tokens[i] for i in ids]) == data else self._longest(data)

    def writes(self, char: str) -> bool:
        """Whether tokens can say this character."""
        try:
            data = char.encode()
        except UnicodeEncodeError:  # half of a pair, alone
            return False
        return b"".join([self.tokens[i] for i in self(data)]) == data

    def _longest(self, data: bytes) -> list[int]:
        """The longest token each time: for texts that the tokenizer writes with spaces of its own.

        Shorter than the text where no token goes on.
        """
        ids = []
        while data:
            length = next((n for n in range(min(len(data), _LONGEST), 0, -1) if data[:n] in self._ids), None)
            if length is None:
                break
            ids.append(self._ids[data[:length]])
            data = data[length:]
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: i for i, token in reversed(list(enumerate(self.tokens))) if i not in special}


class Vocabulary:
    """What grammars are compiled for."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        """Raises UnsupportedError where no token ends a text."""
        if not tokenizer.eos_ids:
            raise UnsupportedError("the model's vocabulary has no token that ends a text, which grammars need")
        self._wrapper = _Wrapper(tokenizer)
        # Its masks have a bit for each token of the tokenizer.
        self.for_llguidance = LLTokenizer(self._wrapper, eos_token=sorted(tokenizer.eos_ids))  # type: ignore[arg-type]

    def unwritable(self, text: str) -> list[str]:
        """Characters beyond ASCII in the text that no tokens can say: small vocabularies lack some of the bytes."""
        return sorted(char for char in set(text) if not (char.isascii() or self._wrapper.writes(char)))
