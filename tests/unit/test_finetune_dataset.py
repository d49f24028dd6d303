"""What is left out is counted; nothing is on both sides of the split; a step's examples are divided whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.errors import ConfigError
from pagoda.finetune.data.batches import micro_batches, num_trained
from pagoda.finetune.data.dataset import DataSet, load_data
from pagoda.finetune.data.render import Example, Renderer
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import VocabularyFile, bpe_metadata


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(VocabularyFile(bpe_metadata()))


def load(tmp_path: Path, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], **options: object) -> DataSet:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in pairs))
    settings = {"max_length": 100, **options}
    return load_data([path], Renderer(tokenizer, None), **settings)  # type: ignore[arg-type]


def test_what_is_left_out_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = load(tmp_path, tokenizer, [("a", "b"), ("a", "b"), ("a", " "), ("a", "x" * 200), ("c", "d")])
    assert len(data.train) == 2
    counts = data.counts
    assert (counts.records, counts.duplicates, counts.empty_answers, counts.too_long) == (5, 1, 1, 1)
    assert [line.split()[0] for line in counts.lines(100)] == ["1", "1", "1"]


def test_long_examples_may_be_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = load(tmp_path, tokenizer, [("a", "x" * 200)], too_long="cut")
    assert [len(example) for example in data.train] == [100]
    assert data.train[0].ids[-1] != tokenizer.eos_id
    assert data.counts.cut == 1


def test_a_cut_that_leaves_nothing_to_learn_leaves_no_example(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="nothing is left to train on: 1 examples were cut"):
        load(tmp_path, tokenizer, [("x" * 200, "y")], too_long="cut")


def test_plain_text_becomes_windows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "book.txt"
    path.write_text("x" * 240)
    whole = tokenizer.encode("x" * 240, add_special=False)
    data = load_data([path], Renderer(tokenizer, None), max_length=50)
    assert np.concatenate([example.ids for example in data.train]).tolist() == [*whole, tokenizer.eos_id]
    assert all(not example.trained[0] and example.trained[1:].all() for example in data.train)


def test_the_split_is_the_seeds(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [("question", f"answer {i}") for i in range(40)]
    first, again, other = (load(tmp_path, tokenizer, pairs, held_out=0.25, seed=seed) for seed in (1, 1, 2))

    def where(data: DataSet) -> list[str]:
        return [example.where for example in data.held_out]

    assert len(first.held_out) == 10
    assert where(first) == where(again) != where(other)
    assert not {e.key for e in first.train} & {e.key for e in first.held_out}


def test_held_out_files_stay_out_of_training(tmp_path: Path, tokenizer: Tokenizer) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    data = load(tmp_path, tokenizer, [("a", "b"), ("c", "d")], held_out_paths=[held])
    assert (len(data.train), len(data.held_out), data.counts.duplicates) == (1, 1, 1)
    assert set(data.digests) == {str(held), str(tmp_path / "pairs.jsonl")}


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=9), min_size=1, max_size=8), st.integers(2, 20))
def test_micro_batches_hold_each_example_once(masks: list[list[bool]], most: int) -> None:
    examples, at = [], 0
    for mask in masks:
        examples.append(Example("", np.arange(at, at + len(mask), dtype=np.int32), np.array([False, *mask[1:]])))
        at += len(mask)
    made = list(micro_batches(examples, most))
    assert np.concatenate([micro.ids for micro in made]).tolist() == list(range(at))
    assert sum(len(micro.rows) for micro in made) == num_trained(examples)
    for micro in made:
        assert len(micro.ids) <= most or len(micro.lengths) == 1
        assert (micro.ids[micro.rows + 1] == micro.targets).all()
        starts = np.cumsum([0, *micro.lengths[:-1]])
        assert (micro.positions[starts] == 0).all()
        assert sum(micro.lengths) == len(micro.ids)
