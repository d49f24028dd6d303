"""Small vocabularies for tests, as the metadata of a GGUF file holds them, and checkpoints that hold nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

import plain_tokenizers
import tricky_texts
from plain_tokenizers import SPLITS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class VocabularyFile:
    """A checkpoint without tensors."""

    metadata: Mapping[str, Any]
    kind: str = "gguf"
    architecture: str = "llama"
    path: Path = field(default_factory=Path)


def corpus() -> list[str]:
    """Text to train on: some English and code, and what the tests will ask for."""
    prose = Path(plain_tokenizers.__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    tricky = [text.encode("utf-8", "replace").decode() for text in tricky_texts.texts(600, seed=1)]
    return prose * 5 + tricky


@cache
def _trained_bpe(pre: str, size: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = _merges(tokenizer)
    return tuple(tokens), tuple(merges)


def _merges(tokenizer: tokenizers.Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def bpe_metadata(pre: str = "smollm", size: int = 1500, **changes: Any) -> dict[str, Any]:
    """Byte-level BPE, with <|endoftext|>, <|im_start|>, <|im_end|> and a user defined <tool> after its tokens."""
    tokens, merges = _trained_bpe(pre if pre in SPLITS else "gpt-2", size)
    size = len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"],
        "tokenizer.ggml.token_type": [NORMAL] * size + [CONTROL] * 3 + [USER_DEFINED],
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": size + 1,
        "tokenizer.ggml.eos_token_id": size + 2,
        "tokenizer.ggml.add_bos_token": False,
        **changes,
    }


@cache
def _trained_spm(size: int) -> tuple[str, ...]:
    """Characters and joined pieces, best first, learned without regard to where words end."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁*[^▁]*"), "isolated")
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=size, limit_alphabet=300, show_progress=False)
    )
    return tuple(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__))


def spm_metadata(size: int = 1500, **changes: Any) -> dict[str, Any]:
    """SentencePiece: <unk> <s> </s>, 256 bytes, then pieces; a user defined <tool> at the end."""
    pieces = [piece for piece in _trained_spm(size) if piece not in tricky_texts.MARKERS]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces, "<tool>"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(len(pieces))] + [0.0],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL]
        + [BYTE] * 256
        + [NORMAL] * len(pieces)
        + [USER_DEFINED],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **changes,
    }
