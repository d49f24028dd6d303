"""Texts that a grammar allows, found by walking through its masks: what a model that knows nothing would say."""

from __future__ import annotations

import random

import numpy as np

from pagoda.constraint import CompiledConstraint, TokenConstraint
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import VocabularyFile, bpe_metadata

CLOSING = ('"', "}", "]", "0", ",", ":")  # from CALM tokens on, what ends texts is taken where it is allowed
CALM = 40


def small_tokenizer() -> Tokenizer:
    return load_tokenizer(VocabularyFile(bpe_metadata(size=1500)))


def allowed_ids(constraint: TokenConstraint, vocab_size: int) -> list[int]:
    mask = np.zeros(-(-vocab_size // 32), np.uint32)
    error = constraint.fill(mask)
    assert error is None, error
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(grammar: CompiledConstraint, tokenizer: Tokenizer, seed: int, max_tokens: int = 600) -> str | None:
    """A random text of the grammar; None where it did not end in time."""
    rng = random.Random(seed)
    constraint = grammar.start()
    ids: list[int] = []
    while len(ids) < max_tokens:
        allowed = allowed_ids(constraint, tokenizer.vocab_size)
        assert allowed
        ends = [i for i in allowed if i in tokenizer.eos_ids]
        if constraint.finished or (ends and (len(ids) > CALM or rng.random() < 0.3)):
            return tokenizer.decode(ids)
        allowed = [i for i in allowed if i not in tokenizer.eos_ids]
        calm = [i for i in allowed if tokenizer.token_bytes(i).decode("latin-1") in CLOSING]
        chosen = rng.choice(calm if calm and rng.random() < (0.8 if len(ids) > CALM else 0.3) else allowed)
        ids.append(chosen)
        constraint.accept(chosen)
    return None


def accepts(grammar: CompiledConstraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the grammar allows the text, whole, in the tokens that the tokenizer writes it with."""
    constraint = grammar.start()
    for token_id in tokenizer.encode(text, add_special=False):
        if token_id not in allowed_ids(constraint, tokenizer.vocab_size):
            return False
        constraint.accept(token_id)
    return any(i in tokenizer.eos_ids for i in allowed_ids(constraint, tokenizer.vocab_size))
