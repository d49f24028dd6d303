"""Text that a model writes: which languages, how much, the same each time, kept in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pagoda.scoring.self_text import (
    CALIBRATION_SEED,
    HELD_OUT_SEED,
    REGISTERS,
    languages_of,
    plain_text,
    self_documents,
)
from pagoda.text.tokenizer import load_tokenizer
from tiny_models import TINY, memory_checkpoint, write_gguf

LLAMA = TINY["llama"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "model.gguf", LLAMA)


def test_the_same_text_each_time_and_other_text_with_another_seed(model: Path, tmp_path: Path) -> None:
    first = self_documents(model, 600, CALIBRATION_SEED)
    (kept,) = (tmp_path / "cache" / "self-text").iterdir()
    assert [json.loads(line) for line in kept.read_text().split("\n") if line] == first
    kept.unlink()
    assert self_documents(model, 600, CALIBRATION_SEED) == first
    assert self_documents(model, 600, HELD_OUT_SEED) != first


def test_what_is_in_the_cache_is_not_written_again(model: Path, tmp_path: Path) -> None:
    self_documents(model, 600, CALIBRATION_SEED)
    (kept,) = (tmp_path / "cache" / "self-text").iterdir()
    kept.write_text('"kept"\n')
    assert self_documents(model, 600, CALIBRATION_SEED) == ["kept"]
    model.write_bytes(write_gguf(tmp_path / "other.gguf", LLAMA, type="Q8_0").read_bytes())
    assert self_documents(model, 600, CALIBRATION_SEED) != ["kept"]


def test_as_many_tokens_as_asked(model: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    documents = self_documents(model, 600, CALIBRATION_SEED, progress=lambda *step: steps.append(step))
    tokenizer = load_tokenizer(memory_checkpoint(LLAMA, kind="gguf"))  # type: ignore[arg-type]
    assert len(tokenizer.encode(plain_text(documents))) >= 600
    assert steps[-1][1] == steps[-1][2]


def test_texts_begin_with_openings_and_dialogs_with_questions(model: Path) -> None:
    openings = tuple(opening for register in REGISTERS.values() for opening in register.openings)
    questions = {question for register in REGISTERS.values() for question in register.questions}
    for document in self_documents(model, 600, CALIBRATION_SEED):
        if isinstance(document, str):
            assert document.startswith(openings)
        else:
            assert document[0]["content"] in questions
            assert document[1]["role"] == "assistant"


class Words:
    """A tokenizer that has words of ASCII letters and spells all else."""

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return [0] * sum(1 if word.isascii() else len(word.encode()) for word in text.split())


def test_languages_that_the_tokenizer_spells_are_left_out() -> None:
    assert {"English", "code"} <= set(languages_of(Words()))  # type: ignore[arg-type]
    assert not {"Russian", "Chinese", "Arabic"} & set(languages_of(Words()))  # type: ignore[arg-type]


def test_a_tokenizer_without_words_gets_english() -> None:
    class Bytes:
        def encode(self, text: str, *, add_special: bool = True) -> list[int]:
            return list(text.encode())

    assert languages_of(Bytes()) == ["English"]  # type: ignore[arg-type]
