"""The tokenizer of a Hugging Face folder as GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`).

GGUF names a pre-tokenizer where tokenizer.json spells it out. Which name it is shows when both cut the same text.

Covered: byte-level BPE with a pre-tokenizer that `pagoda.text.bpe` knows, SentencePiece BPE. Not covered, and refused:
WordPiece, unigram, and what `tokenizer_limits.py` names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex
from tokenizers import Tokenizer as Pipeline
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.gguf_writer import F32, I32, Value, boolean, numbers, text, texts, u32
from pagoda.quantize.gguf.tokenizer_limits import check, is_sentencepiece, normalizes, puts_space_first
from pagoda.text.added_tokens import control_text
from pagoda.text.bpe import PRE_TOKENIZERS, PreTokenizer
from pagoda.text.chat_sources import folder_templates
from pagoda.text.end_tokens import TURN_TEXTS, end_ids
from pagoda.text.from_gguf import NORMALIZER_KEY
from pagoda.text.from_json import read_folder, read_pipeline
from pagoda.text.vocabulary import TokenType, Vocabulary

_KEY = "tokenizer.ggml."
# Names that mean the same are tried in this order; of the rest, in the table's.
_PREFERRED = ("llama-bpe", "qwen2", "smollm", "gpt-2", "tekken", "falcon3", "falcon", "dbrx")
_PROBE = (
    "Hello, World!  It's 3.14159 or 12345678 — don't, we'LL, I'M\n\n\n  three   spaces\ttabs\r\n"
    "naïve café Größe ÅNGSTRÖM été\u0301 日本語 한국어 العربية हिन्दी ไทย 🦙🚀 ½ ² ٣٤ <|x|> a_b-c/d\\e $100 `x`^~|+= "
    "CamelCaseHTTPServer iPhone15Pro ABC123def (a){b}[c] 'quoted' \"double\" ...!!!??? x=1;y+=2 #tag @you %5 &c *p\n \n"
)
_NO_SCORE = -1e6  # of tokens that no merge makes: never merged into


def tokenizer_values(folder: Path, config: Mapping[str, Any], vocab_rows: int) -> dict[str, Value]:
    """The metadata for the tokenizer in `folder`; `config` is config.json, `vocab_rows` the rows of the embedding.

    UnsupportedError for a tokenizer that GGUF files cannot carry, FormatError where it is damaged.
    """
    vocabulary, _ = read_folder(folder, config)
    if len(vocabulary.tokens) > vocab_rows:
        message = f"has {len(vocabulary.tokens)} tokens, but the embedding {vocab_rows} rows"
        raise FormatError(message, path=str(folder / "tokenizer.json"))
    pipeline, _, settings = read_pipeline(folder, config)
    state = json.loads(pipeline.to_str())
    check(state, pipeline, vocabulary, folder.absolute().name)
    kind = _sentencepiece(state, vocabulary, vocab_rows) if is_sentencepiece(state) else _byte_level(state, pipeline)
    named = _named(settings, vocabulary, vocab_rows)
    return {**kind, **_vocabulary(vocabulary, vocab_rows), **named, **_templates(folder)}


def _vocabulary(vocabulary: Vocabulary, vocab_rows: int) -> dict[str, Value]:
    """Tokens and their types; rows past the vocabulary get names, as every row must have one."""
    padding = range(len(vocabulary.tokens), vocab_rows)
    tokens = [token if token or kind != TokenType.UNUSED else f"[PAD{i}]"
              for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))]  # fmt: skip
    return {
        _KEY + "tokens": texts([*tokens, *(f"[PAD{i}]" for i in padding)]),
        _KEY + "token_type": numbers(I32, [*map(int, vocabulary.types), *([int(TokenType.UNUSED)] * len(padding))]),
    }


def _named(settings: Mapping[str, Any], vocabulary: Vocabulary, vocab_rows: int) -> dict[str, Value]:
    """Special tokens by their roles, and whether texts are framed by them."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    found: dict[str, int | None] = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id}
    for role, name in (("unk", "unknown"), ("pad", "padding"), ("sep", "seperator"), ("mask", "mask")):
        found[name] = ids.get(control_text(settings.get(f"{role}_token")) or "")
    ends = {i for i in vocabulary.eos_ids if i < vocab_rows}
    if found["eos"] is None:
        found["eos"] = min(ends, default=None)
    found |= _further_ends(vocabulary, ends - {found["eos"]})
    values = {f"{_KEY}{name}_token_id": u32(i) for name, i in found.items() if i is not None}
    values[_KEY + "add_bos_token"] = boolean(bool(vocabulary.prefix))
    values[_KEY + "add_eos_token"] = boolean(bool(vocabulary.suffix))
    if len(ends) > 1:
        values[_KEY + "eos_token_ids"] = numbers(I32, sorted(ends))
    return values


def _further_ends(vocabulary: Vocabulary, ends: set[int]) -> dict[str, int]:
    """Two more ends that GGUF has names for, for readers that know no list of ends.

    Those that every reader knows by their texts need none, but one that ends a turn is said to.
    """
    known = end_ids(vocabulary.tokens, vocabulary.types, ())
    unknown = sorted(ends - known)
    turns = [i for i in sorted(ends & known) if vocabulary.tokens[i] in TURN_TEXTS]
    return dict(zip(("eot", "eom"), [*unknown, *turns][: 2 if unknown else 1], strict=False))


def _templates(folder: Path) -> dict[str, Value]:
    key = "tokenizer.chat_template"
    templates = folder_templates(folder)
    named = sorted(name for name in templates if name != "default")
    values = {key if name == "default" else f"{key}.{name}": text(source) for name, source in templates.items()}
    return {**values, f"{key}s": texts(named)} if named else values


# Byte-level BPE


def _byte_level(state: Mapping[str, Any], pipeline: Pipeline) -> dict[str, Value]:
    model = state["model"]
    values = {
        _KEY + "model": text("gpt2"),
        _KEY + "pre": text(find_pre_tokenizer(pipeline, bool(model.get("ignore_merges")))),
        _KEY + "merges": texts([" ".join(pair) for pair in _merges(model)]),
    }
    return {**values, NORMALIZER_KEY: text("NFC")} if normalizes(state) else values


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs, best first; older files write them as "left right"."""
    for merge in model.get("merges", []):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def find_pre_tokenizer(pipeline: Any, ignore_merges: bool) -> str:
    """The name of the pre-tokenizer that cuts as the pipeline's does. UnsupportedError where there is none."""
    step = pipeline.pre_tokenizer
    wanted = [piece for piece, _ in step.pre_tokenize_str(_PROBE)] if step is not None else []
    for name in (*_PREFERRED, *PRE_TOKENIZERS):
        row = PRE_TOKENIZERS[name]
        if row.ignore_merges == ignore_merges and _pieces(row) == wanted:
            return name
    raise UnsupportedError(
        f"no pre-tokenizer that GGUF files can name cuts texts as this tokenizer.json does; known: "
        f"{', '.join(PRE_TOKENIZERS)}"
    )


def _pieces(row: PreTokenizer) -> list[str]:
    cuts = [Split(Regex(pattern), behavior="isolated") for pattern in row.patterns]
    steps = Steps([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
    return [piece for piece, _ in steps.pre_tokenize_str(_PROBE)]


# SentencePiece


def _sentencepiece(state: Mapping[str, Any], vocabulary: Vocabulary, vocab_rows: int) -> dict[str, Value]:
    """Merging by scores is merging by rank where what is merged first scores highest."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(state["model"])):
        ranks.setdefault(left + right, rank)
    scores = [-float(ranks[token]) if token in ranks else _NO_SCORE for token in vocabulary.tokens]
    scores = [0.0 if len(token) == 1 else score for token, score in zip(vocabulary.tokens, scores, strict=True)]
    return {
        _KEY + "model": text("llama"),
        _KEY + "pre": text("default"),
        _KEY + "scores": numbers(F32, scores + [_NO_SCORE] * (vocab_rows - len(scores))),
        _KEY + "add_space_prefix": boolean(puts_space_first(state)),
    }
