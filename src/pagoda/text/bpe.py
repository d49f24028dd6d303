"""Byte-level BPE (GPT-2 and after): a text is cut by regular expressions, then bytes merge within each piece.

The table of pre-tokenizers follows llama.cpp's, since its names are what GGUF files carry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from pagoda.errors import FormatError, UnsupportedError
from pagoda.text.vocabulary import byte_alphabet

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_SEED = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_QWEN35 = (  # marks are parts of words
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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
GLM4 = PreTokenizer((_LLAMA3,), ignore_merges=True)
TEKKEN = PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)
O200K = PreTokenizer((_O200K,))
FALCON = PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))
DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": DEFAULT,
    "gpt-2": GPT2, "gpt2": GPT2, "phi-2": GPT2, "olmo": GPT2, "mpt": GPT2, "exaone4": GPT2, "modern-bert": GPT2,
    "smollm": DIGITS, "starcoder": DIGITS, "refact": DIGITS, "command-r": DIGITS, "codeshell": DIGITS,
    "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "falcon3": LLAMA3, "pixtral": LLAMA3,
    "falcon-h1": LLAMA3, "lfm2": LLAMA3,
    "dbrx": PreTokenizer((_LLAMA3,)), "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2, "stablelm2": QWEN2, "megrez": QWEN2, "hunyuan": QWEN2,
    "chatglm-bpe": PreTokenizer((_LLAMA3,)), "glm4": GLM4, "glm5": GLM4,
    "seed-coder": PreTokenizer((_SEED,)),
    "hunyuan-dense": PreTokenizer((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)),
    "qwen35": PreTokenizer((_QWEN35,)),
    "tekken": TEKKEN,
    "gpt-4o": O200K, "llama4": O200K,
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

    def __init__(self, ids: Mapping[str, int], merges: Sequence[str], pre: PreTokenizer, *, nfc: bool = False) -> None:
        """`ids` are the tokens that text may become; `merges` are "left right", best first; `nfc` composes accents.

        A merge may make a token that does not exist: its bytes stand for it in the end, as in llama.cpp. Raises
        FormatError where a merge is malformed.
        """
        # What has no token gets ids past the end: bytes part their neighbours then, and merging can go on.
        self._end = max(ids.values(), default=-1) + 1
        missing = [char for char in byte_alphabet() if char not in ids]
        pairs = merge_pairs(merges)
        try:
            model = _model(self._past_end(ids, missing), pairs, pre)
        except Exception:  # `tokenizers` raises bare Exception for a merge that needs or makes no token
            _check(merges)
            made = {left + right for left, right in pairs}.difference(ids, missing)
            missing += sorted(made)
            known = self._past_end(ids, missing)
            model = _model(known, [pair for pair in pairs if pair[0] in known and pair[1] in known], pre)
        self._bytes_of = {self._end + n: [ids[c] for c in text if c in ids] for n, text in enumerate(missing)}
        self._tokenizer = Tokenizer(model)
        if nfc:
            self._tokenizer.normalizer = NFC()
        cuts = [Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
        self._tokenizer.pre_tokenizer = Steps([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])

    def __call__(self, text: str) -> list[int]:
        # A batch is encoded without the interpreter's lock, so that a long text keeps no other thread waiting.
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if not self._bytes_of or max(encoded, default=0) < self._end:
            return encoded
        return [i for token in encoded for i in self._bytes_of.get(token, (token,))]

    def _past_end(self, ids: Mapping[str, int], missing: Sequence[str]) -> dict[str, int]:
        return {**ids, **{text: self._end + n for n, text in enumerate(missing)}}


def _model(ids: dict[str, int], pairs: list[tuple[str, str]], pre: PreTokenizer) -> BPE:
    return BPE(vocab=ids, merges=pairs, ignore_merges=pre.ignore_merges)


def merge_pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    """The two parts of each merge. Of a merge that stands twice, the first counts."""
    split = [merge.partition(" ") for merge in (merges if len(set(merges)) == len(merges) else dict.fromkeys(merges))]
    return [(left, right) for left, _, right in split]


def _check(merges: Sequence[str]) -> None:
    for merge in merges:
        if not all(merge.partition(" ")):
            raise FormatError(f"tokenizer.ggml.merges holds {merge!r}, which is not two tokens")
