"""Where a sequence stands in a grammar: forced tokens, going back, the end, and grammars that give up."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from grammar_walk import allowed_ids, small_tokenizer, walk
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.constraint import CompiledGrammar
from pagoda.grammar.source import GrammarKind, GrammarSource

TOKENIZER = small_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER)
EOS = min(TOKENIZER.eos_ids)
PERSON = {
    "type": "object",
    "properties": {"first_name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["first_name", "age"],
}


def compiled(kind: GrammarKind, text: str) -> CompiledGrammar:
    return COMPILER.compile(GrammarSource(kind, text))


@pytest.mark.parametrize(
    ("kind", "text"),
    [("json_schema", json.dumps(PERSON)), ("json_object", ""), ("regex", "(ab|cd)*x?"), ("regex", "a*")],
)
def test_going_back_equals_never_having_gone(kind: GrammarKind, text: str) -> None:
    grammar = compiled(kind, text)
    rng = random.Random(1)
    for _ in range(3):
        constraint, ids, masks = grammar.start(), [], []
        while len(ids) < 15:
            masks.append(allowed_ids(constraint, TOKENIZER.vocab_size))
            ids.append(rng.choice(masks[-1]))
            constraint.accept(ids[-1])
            if rng.random() < 0.3:
                kept = rng.randrange(len(ids) + 1)
                constraint.rewind(kept)
                assert constraint.num_outputs == kept
                del ids[kept:], masks[kept:]
            again = grammar.start()
            for token_id in ids:
                again.accept(token_id)
            assert again.finished == constraint.finished
            assert allowed_ids(again, TOKENIZER.vocab_size) == allowed_ids(constraint, TOKENIZER.vocab_size)


def test_forced_tokens_are_the_only_ones_allowed_one_by_one() -> None:
    constraint = compiled("json_schema", json.dumps(PERSON)).start()
    for token_id in TOKENIZER.encode('{"', add_special=False):
        constraint.accept(token_id)
    forced = constraint.forced()
    assert TOKENIZER.decode(forced) == "first_name"[: len(TOKENIZER.decode(forced))]
    assert len(forced) > 1
    for token_id in forced:
        assert allowed_ids(constraint, TOKENIZER.vocab_size) == [token_id]
        constraint.accept(token_id)


def test_tokens_that_may_follow_are_counted_without_following_them() -> None:
    constraint = compiled("json_schema", json.dumps(PERSON)).start()
    ids = TOKENIZER.encode('{"first_name": "Ada", "age": 36}', add_special=False)
    wrong = TOKENIZER.encode("[", add_special=False)
    assert constraint.count_allowed(ids) == len(ids)
    assert constraint.count_allowed([*ids[:4], *wrong, *ids[4:]]) == 4
    assert constraint.num_outputs == 0
    for token_id in ids:
        constraint.accept(token_id)
    assert constraint.finished
    assert constraint.count_allowed(wrong) == 0


def test_forced_tokens_are_those_of_the_tokenizer() -> None:
    text = "the name of the person"
    assert compiled("choice", json.dumps([text])).start().forced() == TOKENIZER.encode(text, add_special=False)


def test_the_end_is_known_without_a_token_for_it() -> None:
    constraint = compiled("regex", "ab").start()
    for token_id in TOKENIZER.encode("ab", add_special=False):
        assert not constraint.finished
        constraint.accept(token_id)
    assert constraint.finished
    assert set(allowed_ids(constraint, TOKENIZER.vocab_size)) == set(TOKENIZER.eos_ids)
    constraint.accept(EOS)
    assert constraint.finished


def test_an_end_that_is_a_choice_needs_its_token() -> None:
    constraint = compiled("regex", "a*").start()
    assert not constraint.finished
    assert EOS in allowed_ids(constraint, TOKENIZER.vocab_size)
    constraint.accept(EOS)
    assert constraint.finished


def test_sequences_of_one_grammar_do_not_disturb_each_other() -> None:
    grammar = compiled("json_schema", json.dumps(PERSON))
    one, other = grammar.start(), grammar.start()
    before = allowed_ids(other, TOKENIZER.vocab_size)
    one.accept(TOKENIZER.encode("{", add_special=False)[0])
    assert allowed_ids(other, TOKENIZER.vocab_size) == before
    assert walk(grammar, TOKENIZER, 3) == walk(grammar, TOKENIZER, 3)


def test_a_grammar_that_takes_ever_longer_ends_its_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of x's can be read in more ways with every x: masks take time in proportion to its length squared."""
    grammar = compiled("lark", 'start: a\na: a a | "x"')
    monkeypatch.setattr("pagoda.grammar.constraint.SECONDS_AT_ONCE", 0.001)
    monkeypatch.setattr("pagoda.grammar.constraint.SECONDS_A_TOKEN", 0.0)
    constraint = grammar.start()
    mask = np.zeros(-(-TOKENIZER.vocab_size // 32), np.uint32)
    (token_id,) = TOKENIZER.encode("x", add_special=False)
    error = None
    for _ in range(1000):
        error = constraint.fill(mask)
        if error:
            break
        constraint.accept(token_id)
    assert error is not None
    assert "too complex" in error
    assert not constraint.finished
    assert constraint.fill(mask) == error
    monkeypatch.undo()
    assert grammar.start().fill(mask) is None
