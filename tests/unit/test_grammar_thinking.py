"""Thinking before an answer: free, bounded, and followed by what the answer has to obey."""

from __future__ import annotations

import random

import pytest

from grammar_walk import allowed_ids, small_tokenizer
from pagoda.constraint import TokenConstraint
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.source import GrammarSource
from pagoda.grammar.thinking import Marks, Thinking, ThinkingVocabulary

TOKENIZER = small_tokenizer()
V = TOKENIZER.vocab_size
EOS = min(TOKENIZER.eos_ids)
TEXT_MARKS = ThinkingVocabulary(TOKENIZER, Marks("<think>", "</think>", "\n\n"))
TOKEN_MARKS = ThinkingVocabulary(TOKENIZER, Marks("<tool>", "<|im_start|>", ""))  # each one token
ANSWER = GrammarCompiler(TOKENIZER).compile(GrammarSource("choice", '["yes", "no"]'))


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False, parse_special=True)


def feed(constraint: TokenConstraint, text: str) -> None:
    for token_id in ids_of(text):
        assert token_id in allowed_ids(constraint, V), (text, token_id)
        constraint.accept(token_id)


def forced_text(constraint: TokenConstraint) -> str:
    """What is forced now, each token being the only one allowed."""
    ids = list(constraint.forced())
    assert constraint.count_allowed([*ids, EOS]) == len(ids)
    for token_id in ids:
        assert allowed_ids(constraint, V) == [token_id]
        constraint.accept(token_id)
    return TOKENIZER.decode(ids, skip_special=False)


def test_an_answer_obeys_after_the_thinking() -> None:
    constraint = Thinking(TEXT_MARKS, opened=True, answer=ANSWER).start()
    assert EOS not in allowed_ids(constraint, V)
    feed(constraint, 'no rules {"here" </thin but > </think>')
    assert forced_text(constraint) == "\n\n"
    assert {TOKENIZER.token_bytes(i)[:1] for i in allowed_ids(constraint, V)} == {b"y", b"n"}
    assert not constraint.finished
    feed(constraint, "yes")
    assert constraint.finished


def test_a_model_opens_its_thinking_or_answers_at_once() -> None:
    thinking = Thinking(TEXT_MARKS, opened=False, answer=ANSWER)
    at_once = thinking.start()
    feed(at_once, "no")
    assert at_once.finished
    first = thinking.start()
    assert ids_of("x")[0] not in allowed_ids(first, V)
    feed(first, "<think>")
    assert ids_of("x")[0] in allowed_ids(first, V)
    feed(first, "well</think>")
    assert forced_text(first) == "\n\n"
    feed(first, "no")
    assert first.finished


def test_a_token_that_goes_on_beyond_the_mark_is_not_allowed_before_a_grammar() -> None:
    beyond = [i for i in range(V) if TOKENIZER.token_bytes(i).startswith(b">") and len(TOKENIZER.token_bytes(i)) > 1]
    assert beyond, "the vocabulary has such tokens"
    constraint = Thinking(TEXT_MARKS, opened=True, answer=ANSWER).start()
    for token_id in ids_of("</think>")[:-1]:
        constraint.accept(token_id)
    assert not set(beyond) & set(allowed_ids(constraint, V))
    free = Thinking(TEXT_MARKS, opened=True, budget=50).start()
    for token_id in ids_of("</think>")[:-1]:
        free.accept(token_id)
    assert set(beyond) <= set(allowed_ids(free, V))


@pytest.mark.parametrize("marks", [TEXT_MARKS, TOKEN_MARKS], ids=["text", "tokens"])
def test_a_budget_forces_the_mark(marks: ThinkingVocabulary) -> None:
    constraint = Thinking(marks, opened=True, budget=3).start()
    for token_id in ids_of("abc xyz")[:3]:
        assert not constraint.forced()
        constraint.accept(token_id)
    assert forced_text(constraint) == marks.close.decode() + ("\n\n" if marks is TEXT_MARKS else "")
    assert len(allowed_ids(constraint, V)) == V  # from here on the answer is free
    assert not constraint.finished


def test_marks_do_not_count_against_the_budget() -> None:
    constraint = Thinking(TEXT_MARKS, opened=False, budget=2).start()
    for token_id in [*ids_of("<think>"), *ids_of("xyz")[:1]]:
        constraint.accept(token_id)
    assert not constraint.forced()
    constraint.accept(ids_of("q")[0])
    assert forced_text(constraint) == "</think>\n\n"


@pytest.mark.parametrize(("opened", "expected"), [(True, "</think>\n\n"), (False, "<think></think>\n\n")])
def test_no_budget_at_all(opened: bool, expected: str) -> None:
    constraint = Thinking(TEXT_MARKS, opened=opened, budget=0, answer=ANSWER).start()
    assert forced_text(constraint) == expected
    feed(constraint, "yes")
    assert constraint.finished


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("budget", [None, 4])
def test_going_back_equals_never_having_gone(opened: bool, budget: int | None) -> None:
    thinking = Thinking(TEXT_MARKS, opened=opened, budget=budget, answer=ANSWER)
    ids = [*([] if opened else ids_of("<think>")), *ids_of("a b")]
    if budget is None:
        ids += [*ids_of("</think>"), *ids_of("\n\n"), *ids_of("yes")]
    constraint = thinking.start()
    while budget is not None and not constraint.finished:  # whatever the budget leaves
        allowed = allowed_ids(constraint, V)
        position = constraint.num_outputs
        ids[position:] = [ids[position] if position < len(ids) and ids[position] in allowed else allowed[0]]
        constraint.accept(ids[position])
    rng = random.Random(0)
    constraint = thinking.start()
    for _ in range(60):
        target = rng.randrange(len(ids) + 1)
        if target < constraint.num_outputs:
            constraint.rewind(target)
        for token_id in ids[constraint.num_outputs : target]:
            constraint.accept(token_id)
        again = thinking.start()
        for token_id in ids[:target]:
            again.accept(token_id)
        assert allowed_ids(again, V) == allowed_ids(constraint, V)
        assert again.finished == constraint.finished
