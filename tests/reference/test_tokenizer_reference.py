"""Pagoda's tokenizers against plain ones written from the definitions, id for id."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.formats.checkpoint import open_checkpoint
from pagoda.text.spm import SentencePieceEncoder
from pagoda.text.tokenizer import load_tokenizer
from plain_tokenizers import SPLITS, PlainBPE, PlainSPM
from tokenizer_files import BYTE, NORMAL, VocabularyFile, bpe_metadata, spm_metadata
from tricky_texts import texts

KEY = "tokenizer.ggml."


def clean(text: str) -> str:
    """The text that broken Unicode stands for."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain_bpe(metadata: Mapping[str, Any]) -> PlainBPE:
    triples = zip(metadata[KEY + "tokens"], metadata[KEY + "token_type"], range(1 << 30), strict=False)
    ids = {text: i for text, kind, i in triples if kind == NORMAL}
    return PlainBPE(ids, metadata[KEY + "merges"], metadata[KEY + "pre"])


def plain_spm(metadata: Mapping[str, Any]) -> PlainSPM:
    rows = list(
        zip(
            metadata[KEY + "tokens"],
            metadata[KEY + "token_type"],
            metadata[KEY + "scores"],
            range(1 << 30),
            strict=False,
        )
    )
    ids = {text: i for text, kind, _, i in rows if kind == NORMAL}
    scores = {text: score for text, kind, score, _ in rows if kind == NORMAL}
    return PlainSPM(ids, scores, {int(text[3:5], 16): i for text, kind, _, i in rows if kind == BYTE})


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_bpe(pre: str) -> None:
    metadata = bpe_metadata(pre)
    tokenizer, plain = load_tokenizer(VocabularyFile(metadata)), plain_bpe(metadata)
    for text in texts(2500):
        assert tokenizer.encode(text, add_special=False) == plain.encode(clean(text)), repr(text)


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_bpe_with_the_default_models_vocabulary(pre: str, default_model: Path) -> None:
    with open_checkpoint(default_model) as checkpoint:
        metadata = {**checkpoint.metadata, KEY + "pre": pre}
        tokenizer, plain = load_tokenizer(VocabularyFile(metadata)), plain_bpe(metadata)
    for text in texts(600, seed=2):
        assert tokenizer.encode(text, add_special=False) == plain.encode(clean(text)), repr(text)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool) -> None:
    metadata = spm_metadata(**{KEY + "add_space_prefix": prefix})
    tokenizer, plain = load_tokenizer(VocabularyFile(metadata)), plain_spm(metadata)
    for text in texts(2000):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == plain.encode(clean(text), add_space_prefix=prefix), repr(text)


def test_sentencepiece_where_scores_tie_and_pieces_overlap() -> None:
    """Random pieces over three letters: every way of cutting meets every other, and many scores are equal."""
    rng = random.Random(5)
    byte_ids = {byte: byte for byte in range(256)}
    for _ in range(150):
        pieces = {"".join(rng.choices("ab▁", k=rng.randint(1, 5))) for _ in range(rng.randint(2, 40))}
        ids = {piece: 256 + n for n, piece in enumerate(sorted(pieces))}
        scores = {piece: float(rng.randint(-6, 0)) for piece in ids}
        plain = PlainSPM(ids, scores, byte_ids)
        encode = SentencePieceEncoder(ids, scores, byte_ids, unk_id=None, add_space_prefix=False)
        for _ in range(20):
            text = "".join(rng.choices("ab c", k=rng.randint(1, 40)))
            assert encode(text) == plain.encode(text, add_space_prefix=False), (text, scores)


@pytest.mark.parametrize("metadata", [bpe_metadata, spm_metadata])
def test_text_survives_the_way_there_and_back(metadata: Callable[[], Mapping[str, Any]]) -> None:
    tokenizer = load_tokenizer(VocabularyFile(metadata()))

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(exclude_characters="▁"), max_size=60))  # SentencePiece writes spaces so
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == clean(text)

    check()
