"""Byte-level BPE (GPT-2 and after): a text is cut by regular expressions, then bytes merge within each piece.

The table of pre-tokenizers follows llama.cpp's, since its names are what GGUF files carry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from pagoda.errors import FormatError, UnsupportedError
from pagoda.text.vocabulary import byte_alphabet

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How a text is cut before merging: each expression cuts the pieces that the one before it left."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as a whole is taken as such
    add_bos: bool = False  # unless the file says otherwise


GPT2 = PreTokenizer((_GPT2,))
DIGITS = PreTokenizer((r"\p{N}", _GPT2))
LLAMA3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
QWEN2 = PreTokenizer((_QWEN2,))
TEKKEN = PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)
FALCON = PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))
DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": DEFAULT,
    "gpt-2": GPT2, "gpt2": GPT2, "phi-2": GPT2, "olmo": GPT2, "mpt": GPT2, "exaone4": GPT2, "modern-bert": GPT2,
    "smollm": DIGITS, "starcoder": DIGITS, "refact": DIGITS, "command-r": DIGITS, "codeshell": DIGITS,
    "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "falcon3": LLAMA3, "pixtral": LLAMA3,
    "dbrx": PreTokenizer((_LLAMA3,)), "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2, "stablelm2": QWEN2, "megrez": QWEN2, "hunyuan": QWEN2,
    "tekken": TEKKEN,
    "falcon": FALCON,
}  # fmt: skip


def pre_tokenizer(name: str) -> PreTokenizer:
    """The row for `tokenizer.ggml.pre`. Raises UnsupportedError for a name that is not in the table."""
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedError(f"tokenizer.ggml.pre is {name!r}; pre-tokenizers that Pagoda knows: {known}") from None


class BytePairEncoder:
    """Encodes ordinary text, in which special tokens mean nothing. Bytes that the vocabulary lacks are left out."""

    def __init__(self, ids: Mapping[str, int], merges: Sequence[str], pre: PreTokenizer) -> None:
        """`ids` are the tokens that text may become; `merges` are "left right", best first.

        Raises FormatError where a merge is malformed or makes a token that does not exist.
        """
        # Bytes without a token get ids past the end, so that they part their neighbours; then they are dropped.
        self._end = max(ids.values(), default=-1) + 1
        missing = [char for char in byte_alphabet() if char not in ids]
        known = {**ids, **{char: self._end + n for n, char in enumerate(missing)}}
        self._has_all_bytes = not missing
        self._tokenizer = Tokenizer(_model(known, merges, pre.ignore_merges))
        cuts = [Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
        self._tokenizer.pre_tokenizer = Steps([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])

    def __call__(self, text: str) -> list[int]:
        # A batch is encoded without the interpreter's lock, so that a long text keeps no other thread waiting.
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return encoded if self._has_all_bytes else [i for i in encoded if i < self._end]


def _model(ids: dict[str, int], merges: Sequence[str], ignore_merges: bool) -> BPE:
    split = [merge.partition(" ") for merge in merges]
    pairs = [(left, right) for left, _, right in split]
    try:
        return BPE(vocab=ids, merges=pairs, ignore_merges=ignore_merges)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise FormatError(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from error
