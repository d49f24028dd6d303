"""A tokenizer from GGUF metadata (`tokenizer.ggml.*`).

Covered: byte-level BPE (`gpt2`) with the pre-tokenizers of `pagoda.text.bpe`, SentencePiece BPE (`llama`), WordPiece
(`bert`), BPE over characters (`gemma4`). Not covered, and refused by name: `t5` (unigram), `rwkv` and others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pagoda.errors import FormatError, UnsupportedError
from pagoda.text.bpe import BytePairEncoder, pre_tokenizer
from pagoda.text.end_tokens import END_TEXTS, FIM_END_TEXTS, NAMES, end_ids
from pagoda.text.plain_bpe import PlainBytePairEncoder
from pagoda.text.specials import SpecialSplitter
from pagoda.text.spm import SentencePieceEncoder
from pagoda.text.vocabulary import SPACE, Spelling, TokenType, Vocabulary, is_byte_token
from pagoda.text.wordpiece import WordPieceEncoder

_KEY = "tokenizer.ggml."
NORMALIZER_KEY = "tokenizer.pagoda.normalizer"  # "NFC", of files that Pagoda wrote: GGUF itself has no word for it
_NAMED = ("bos", "eos", "eot", "eom", "unknown", "padding", *FIM_END_TEXTS)
WORDPIECE_IDS = {"cls": 101, "seperator": 102, "unknown": 100}
_STRIPPING_TYPES = frozenset({TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED})
_NOT_FROM_TEXT = frozenset({TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED, TokenType.BYTE})


class PieceEncoder:
    """Cuts special tokens out of a text and encodes the ordinary text between them."""

    def __init__(self, vocabulary: Vocabulary, ordinary: Callable[[str], list[int]]) -> None:
        self._ordinary = ordinary
        user_defined = _texts(vocabulary, {TokenType.USER_DEFINED})
        self._always = SpecialSplitter(user_defined, vocabulary.rstrip_ids)
        marked = _texts(vocabulary, {TokenType.CONTROL, TokenType.UNKNOWN})
        self._with_control = SpecialSplitter({**marked, **user_defined}, vocabulary.rstrip_ids)

    def __call__(self, text: str, parse_special: bool) -> list[int]:
        splitter = self._with_control if parse_special else self._always
        output: list[int] = []
        for piece in splitter.split(text):
            if isinstance(piece, int):
                output.append(piece)
            else:
                output += self._ordinary(piece)
        return output


def read_gguf(metadata: Mapping[str, Any]) -> tuple[Vocabulary, PieceEncoder]:
    """Raises UnsupportedError for a kind of tokenizer that is not covered, FormatError for inconsistent metadata."""
    model = metadata.get(_KEY + "model")
    if model == "gpt2":
        return _read_bpe(metadata)
    if model == "llama":
        return _read_spm(metadata)
    if model == "bert":
        return _read_wordpiece(metadata)
    if model == "gemma4":
        return _read_plain_bpe(metadata)
    raise UnsupportedError(
        f"{_KEY}model is {model!r}; Pagoda reads 'gpt2' (byte-level BPE), 'llama' (SentencePiece), 'gemma4' and 'bert'"
    )


def _read_bpe(metadata: Mapping[str, Any]) -> tuple[Vocabulary, PieceEncoder]:
    pre = pre_tokenizer(metadata.get(_KEY + "pre", "default"))
    vocabulary = _vocabulary(metadata, "bytes", add_bos=pre.add_bos)
    merges = _array(metadata, "merges", str)
    normalizer = metadata.get(NORMALIZER_KEY)
    if normalizer not in (None, "NFC"):
        raise UnsupportedError(f"{NORMALIZER_KEY} is {normalizer!r}; Pagoda knows 'NFC'")
    encoder = BytePairEncoder(text_ids(vocabulary), merges, pre, nfc=normalizer is not None)
    return vocabulary, PieceEncoder(vocabulary, encoder)


def _read_spm(metadata: Mapping[str, Any]) -> tuple[Vocabulary, PieceEncoder]:
    prefix = bool(metadata.get(_KEY + "add_space_prefix", True))
    defaults = {"bos": 1, "eos": 2, "unknown": 0}
    vocabulary = _vocabulary(metadata, "sentencepiece", add_bos=True, strip=prefix, defaults=defaults)
    scores = _scores(metadata, len(vocabulary.tokens))
    ids = text_ids(vocabulary)
    ordinary = SentencePieceEncoder(
        ids,
        {text: scores[i] for text, i in ids.items()},
        {int(text[3:5], 16): i for i, text in enumerate(vocabulary.tokens) if _is_byte(vocabulary, i)},
        unk_id=_token_id(metadata, "unknown", len(vocabulary.tokens), defaults),
        add_space_prefix=prefix,
    )
    return vocabulary, PieceEncoder(vocabulary, ordinary)


def _read_plain_bpe(metadata: Mapping[str, Any]) -> tuple[Vocabulary, PieceEncoder]:
    """A text begins with BOS whatever the file says, as in llama.cpp: early files say that it does not."""
    vocabulary = _vocabulary({**metadata, _KEY + "add_bos_token": True}, "sentencepiece", add_bos=True)
    byte_ids = {int(text[3:5], 16): i for i, text in enumerate(vocabulary.tokens) if _is_byte(vocabulary, i)}
    encoder = PlainBytePairEncoder(text_ids(vocabulary), _array(metadata, "merges", str), byte_ids)
    return vocabulary, PieceEncoder(vocabulary, encoder)


def _read_wordpiece(metadata: Mapping[str, Any]) -> tuple[Vocabulary, PieceEncoder]:
    """A text stands between CLS and SEP; without ids of their own those are BERT's."""
    tokens = _array(metadata, "tokens", str)
    size = len(tokens)
    cls, sep, unk = (
        next((found for name in names if (found := _token_id(metadata, name, size, WORDPIECE_IDS)) is not None), None)
        for names in (("cls", "bos"), ("seperator", "eos"), ("unknown",))  # the second is GGUF's own spelling
    )
    if cls is None or sep is None or unk is None:
        raise FormatError(f"{_KEY}tokens has {size} entries, none of which is named for the ends of a text")
    vocabulary = Vocabulary(
        tokens,
        _types(metadata, tokens, {"bos": cls, "eos": sep, "eot": None, "eom": None, "unknown": unk}, "sentencepiece"),
        "sentencepiece",
        bos_id=cls,
        eos_id=sep,
        eos_ids=frozenset({sep}),
        prefix=(cls,),
        suffix=(sep,),
        strip_leading_space=True,
    )
    return vocabulary, PieceEncoder(vocabulary, WordPieceEncoder(tokens, unk))


def _scores(metadata: Mapping[str, Any], size: int) -> Sequence[float]:
    """The tokens' scores. Without any, all are alike, and the leftmost pair is joined first."""
    if metadata.get(_KEY + "scores") is None:
        return [0.0] * size
    return _array(metadata, "scores", (int, float), size)


def _vocabulary(
    metadata: Mapping[str, Any],
    spelling: Spelling,
    *,
    add_bos: bool,
    strip: bool = False,
    defaults: Mapping[str, int] | None = None,
) -> Vocabulary:
    tokens = _array(metadata, "tokens", str)
    size = len(tokens)
    named = {name: _token_id(metadata, name, size, defaults or {}) for name in _NAMED}
    types = _types(metadata, tokens, named, spelling)
    ends = [named["eos"], named["eot"], named["eom"], *(named[role] for role in FIM_END_TEXTS), *_listed_ends(metadata)]
    return Vocabulary(
        tokens,
        types,
        spelling,
        bos_id=named["bos"],
        eos_id=named["eos"],
        eos_ids=end_ids(tokens, types, ends, roles=[role for role in FIM_END_TEXTS if named[role] is None]),
        prefix=_frame(metadata, "add_bos_token", named["bos"], add_bos),
        suffix=_frame(metadata, "add_eos_token", named["eos"], False),
        rstrip_ids=rstrip_ids(str(metadata.get("general.name", "")), tokens, types),
        strip_leading_space=strip,
    )


def rstrip_ids(name: str, tokens: Sequence[str], types: Sequence[int]) -> frozenset[int]:
    """Ids of the tokens that take the white space behind them with them, in a model called `name`.

    GGUF files cannot say it; llama.cpp knows it of Phi-3 by the model's name, whose tokens are alike in this.
    """
    if not any(part in name.lower() for part in ("phi-3", "phi3")):
        return frozenset()
    marked = (i for i, kind in enumerate(types) if kind in _STRIPPING_TYPES)
    return frozenset(i for i in marked if tokens[i] not in ("<unk>", "<s>", "<|endoftext|>"))


def _types(
    metadata: Mapping[str, Any], tokens: Sequence[str], named: Mapping[str, int | None], spelling: Spelling
) -> Sequence[int]:
    """The types that the file states: an id in its metadata does not turn what it calls text into a control token.

    But where it declares an end and that is named like one, too, the type is a mistake.
    """
    if _KEY + "token_type" not in metadata:
        return _types_by_looks(tokens, named, spelling)
    types = list(_array(metadata, "token_type", int, len(tokens)))
    for i in (named["eos"], named["eot"], named["eom"]):
        if i is not None and types[i] == TokenType.NORMAL and tokens[i] in END_TEXTS:
            types[i] = int(TokenType.CONTROL)
    return types


def _types_by_looks(tokens: Sequence[str], named: Mapping[str, int | None], spelling: Spelling) -> list[int]:
    """Types for a file that states none: bytes, and control tokens among those that are named and look like one."""
    bytes_are_tokens = spelling == "sentencepiece"
    types = [int(TokenType.BYTE if bytes_are_tokens and is_byte_token(text) else TokenType.NORMAL) for text in tokens]
    marked = {i for i in named.values() if i is not None} | {i for i, text in enumerate(tokens) if text in NAMES}
    for i in marked:
        if tokens[i][:1] + tokens[i][-1:] in ("<>", "[]"):
            types[i] = int(TokenType.UNKNOWN if i == named["unknown"] else TokenType.CONTROL)
    return types


def _listed_ends(metadata: Mapping[str, Any]) -> Sequence[int]:
    """The ids in `eos_token_ids`, a key of Ollama's for models whose answers end in several ways."""
    return _array(metadata, "eos_token_ids", int) if _KEY + "eos_token_ids" in metadata else ()


def _frame(metadata: Mapping[str, Any], key: str, token_id: int | None, default: bool) -> tuple[int, ...]:
    wanted = bool(metadata.get(_KEY + key, default))
    return (token_id,) if wanted and token_id is not None else ()


def _token_id(metadata: Mapping[str, Any], name: str, size: int, defaults: Mapping[str, int]) -> int | None:
    """The id of a named special token; one that lies outside of the vocabulary counts as absent."""
    value = metadata.get(f"{_KEY}{name}_token_id", defaults.get(name))
    return value if isinstance(value, int) and 0 <= value < size else None


def _array(metadata: Mapping[str, Any], name: str, kind: type | tuple[type, ...], size: int = 0) -> Sequence[Any]:
    """An array of at least `size` elements. Only its first element's type is checked: GGUF arrays have one type."""
    value = metadata.get(_KEY + name)
    if value is None:
        raise FormatError(f"{_KEY}{name} is missing")
    if not isinstance(value, (list, tuple)) or (value and not isinstance(value[0], kind)):
        raise FormatError(f"{_KEY}{name} is not an array of {kind}")
    if len(value) < size:
        raise FormatError(f"{_KEY}{name} has {len(value)} entries for {size} tokens")
    return value


def text_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """The tokens that ordinary text may become. Entries that are not valid UTF-8 can match none."""
    pairs = zip(vocabulary.tokens, vocabulary.types, range(len(vocabulary.tokens)), strict=False)
    ids = {text: i for text, kind, i in pairs if kind not in _NOT_FROM_TEXT and text}
    if not is_encodable("".join(ids)):
        ids = {text: i for text, i in ids.items() if is_encodable(text)}
    return ids


def _texts(vocabulary: Vocabulary, kinds: set[TokenType]) -> dict[str, int]:
    """Texts, as a user writes them, of the tokens of some kinds."""
    spaced = vocabulary.spelling == "sentencepiece"
    found = [
        (text, i)
        for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=False))
        if kind in kinds
    ]
    return {text.replace(SPACE, " ") if spaced else text: i for text, i in found if is_encodable(text)}


def _is_byte(vocabulary: Vocabulary, token_id: int) -> bool:
    return vocabulary.types[token_id] == TokenType.BYTE and is_byte_token(vocabulary.tokens[token_id])


def is_encodable(text: str) -> bool:
    """Whether a vocabulary entry was UTF-8 in its file."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
