"""Calibration samples: where they come from, how they are cut, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from pagoda.errors import ConfigError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.quantize.calibration.sample import Sample, model_sample, read_documents, read_sample
from pagoda.quantize.settings import QuantizeSettings
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tiny_models import TINY, memory_checkpoint, write_gguf


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(memory_checkpoint(TINY["llama"], kind="gguf"))  # type: ignore[arg-type]


def sample(source: object, tokenizer: Tokenizer, windows: int = 8, tokens: int = 32) -> Sample:
    documents = read_documents(str(source))
    return read_sample(str(source), documents, tokenizer, None, num_windows=windows, window_tokens=tokens)


def test_text_that_the_model_writes(tmp_path: Path) -> None:
    settings = QuantizeSettings(calibration_samples=4, calibration_tokens=32)
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", TINY["llama"])) as checkpoint:
        found = model_sample(checkpoint, settings, 1000, lambda *step: None)
        assert found.windows.shape == (4, 32)
        assert found.source == "self"
        assert found.facts() == model_sample(checkpoint, settings, 1000, lambda *step: None).facts()


def test_windows_are_spread_over_the_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i:05} " for i in range(2000)))
    ids = tokenizer.encode(path.read_text())
    found = sample(path, tokenizer, 4, 100)
    count = len(ids) // 100
    starts = [i * count // 4 * 100 for i in range(4)]
    prefix = len(tokenizer.vocabulary.prefix)
    for row, start in zip(found.windows, starts, strict=True):
        assert row[prefix:].tolist() == ids[start + prefix : start + 100]
        assert row[:prefix].tolist() == list(tokenizer.vocabulary.prefix)
    assert sample(path, tokenizer, 10**6, 100).windows.shape == (count, 100)


def test_json_lines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    lines = [
        {"text": "plain " * 20},
        {"messages": [{"role": "user", "content": "hi " * 20}, {"role": "assistant", "content": "hello"}]},
        {"conversations": [{"from": "human", "value": "ho"}, {"from": "gpt", "value": "ha " * 20}]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    text, dialog, shared = read_documents(str(path))
    assert text == "plain " * 20
    assert dialog == lines[1]["messages"]
    assert [message["role"] for message in shared] == ["user", "assistant"]  # type: ignore[union-attr]
    assert len(sample(path, tokenizer).windows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n  \n", "is empty"),
        ("a.txt", b"short", "less than one window of 32"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"prompt": "x"}', r"a\.jsonl:1: needs"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "a message needs a role and content"),
    ],
)
def test_refusals(tokenizer: Tokenizer, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        sample(path, tokenizer)


def test_a_missing_file(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        sample("wikitext", tokenizer)


def test_facts_are_of_the_tokens() -> None:
    facts = Sample(np.zeros((2, 3), np.int32), "x").facts()
    assert (facts.windows, facts.tokens, facts.source) == (2, 3, "x")
