"""A draft model is found, checked against the model's vocabulary, quantized where asked, and counted in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagoda import LLM, SamplingParams
from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.engine.speculation.choose import check_speculation, wants_draft_model
from pagoda.engine.speculation.draft_load import Requantized, check_vocabulary
from pagoda.errors import ConfigError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.grammar.source import GrammarSource
from pagoda.text.tokenizer import Tokenizer
from pagoda.text.vocabulary import Vocabulary
from tiny_models import TINY, write_gguf

PROMPTS = [[(37 * i + 11 + 7 * j) % 200 for i in range(20 + 17 * j)] for j in range(4)]
DRAFTING = {"speculation": ("draft",), "draft_model": "d"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A model, and another of the same vocabulary."""
    names = (("target.gguf", "llama"), ("draft.gguf", "qwen2"))
    target, draft = (str(write_gguf(tmp_path / name, TINY[spec])) for name, spec in names)
    return target, draft


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("kv_type", ["f16", "int8"])
def test_with_sliding_windows(kv_type: str, temperature: float, tmp_path: Path) -> None:
    target, draft = (str(write_gguf(tmp_path / f"{name}.gguf", TINY[name])) for name in ("gemma3", "mistral"))
    settings: dict[str, Any] = {"backend": "cpu", "kv_memory_bytes": 1 << 22, "max_context": 160, "kv_type": kv_type}
    params = SamplingParams(temperature=temperature, max_tokens=40, seed=5, ignore_eos=True)
    drafted = LLM(target, **settings, draft_model=draft).generate(PROMPTS, params)
    plain = LLM(target, **settings, speculation=("off",)).generate(PROMPTS, params)
    assert [o.outputs[0].token_ids for o in drafted] == [o.outputs[0].token_ids for o in plain]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("options", [{}, {"draft_format": "q8_0"}, {"kv_type": "int8"}, {"max_batch_tokens": 16}])
def test_answers_are_those_without(options: dict[str, Any], temperature: float, files: tuple[str, str]) -> None:
    target, draft = files
    settings = {"backend": "cpu", "kv_memory_bytes": 1 << 22, "max_context": 128, **options}
    params = SamplingParams(temperature=temperature, max_tokens=30, seed=5, n=2, ignore_eos=True)
    drafted = LLM(target, **settings, speculation=("draft",), draft_model=draft).generate(PROMPTS, params)
    settings.pop("draft_format", None)
    plain = LLM(target, **settings, speculation=("off",)).generate(PROMPTS, params)
    assert [[c.token_ids for c in output.outputs] for output in drafted] == [
        [c.token_ids for c in output.outputs] for output in plain
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_with_a_grammar(temperature: float, files: tuple[str, str]) -> None:
    settings = {"backend": "cpu", "kv_memory_bytes": 1 << 22, "max_context": 128}
    params = SamplingParams(temperature=temperature, max_tokens=40, seed=2)
    grammar = GrammarSource("regex", "([a-z]{1,6} ){3,9}[0-9]+[.]")
    drafted = LLM(files[0], **settings, speculation=("draft",), draft_model=files[1])
    plain = LLM(files[0], **settings, speculation=("off",))
    texts = [[o.outputs[0].text for o in llm.generate(PROMPTS, params, grammar=grammar)] for llm in (drafted, plain)]
    assert texts[0] == texts[1]
    assert all(text.islower() for text in texts[0])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_over_torch(temperature: float, files: tuple[str, str]) -> None:
    """The CUDA backend's program, without a GPU: steps are staged and waited for."""
    pytest.importorskip("torch")
    settings: dict[str, Any] = {"backend": "torch-cpu", "kv_memory_bytes": 1 << 22, "max_context": 128}
    params = SamplingParams(temperature=temperature, max_tokens=20, seed=5, ignore_eos=True)
    drafted = LLM(files[0], **settings, draft_model=files[1]).generate(PROMPTS, params)
    plain = LLM(files[0], **settings, speculation=("off",)).generate(PROMPTS, params)
    assert [o.outputs[0].token_ids for o in drafted] == [o.outputs[0].token_ids for o in plain]


def test_a_model_that_drafts_for_itself_is_always_right(files: tuple[str, str]) -> None:
    settings = EngineSettings(
        model=files[0], draft_model=files[0], speculation=("draft",), backend="cpu", kv_memory_bytes=1 << 22
    )
    loaded = load_engine(settings)
    assert loaded.draft is not None
    llm = LLM(files[0], backend="cpu", kv_memory_bytes=1 << 22, speculation=("draft",), draft_model=files[0])
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.7, max_tokens=40, seed=1, ignore_eos=True))
    assert all(len(output.outputs[0].token_ids) == 40 for output in outputs)
    loaded.close()


def test_memory_is_the_sum_of_both(files: tuple[str, str]) -> None:
    settings = EngineSettings(model=files[0], backend="cpu", kv_memory_bytes=1 << 21, max_context=128)
    alone = load_engine(settings)
    both = load_engine(replace(settings, draft_model=files[1]))
    assert both.draft is not None
    draft = both.draft.footprint
    whole = both.kv_plan.footprint.together
    assert whole.weight_bytes == alone.model.weight_bytes + draft.weight_bytes
    assert whole.buffer_bytes == alone.model.buffer_bytes + draft.buffer_bytes
    assert both.kv_plan.kv_bytes <= 1 << 21
    assert both.kv_plan.num_blocks[0] < alone.kv_plan.num_blocks[0]
    assert both.kv_plan.draft_blocks
    assert "draft model" in str(both.kv_plan)
    alone.close()
    both.close()


def vocabulary(*tokens: str) -> Tokenizer:
    made = Vocabulary(tokens, types=[1] * len(tokens), spelling="bpe")
    return Tokenizer(made, lambda text, parse_special: [])


def test_every_token_must_be_the_same() -> None:
    check_vocabulary(vocabulary("a", "b"), vocabulary("a", "b"), "small")
    with pytest.raises(ConfigError, match=r"small: token 1 is b'c' there and b'b' in the model"):
        check_vocabulary(vocabulary("a", "b"), vocabulary("a", "c"), "small")
    with pytest.raises(ConfigError, match="small has 1 tokens, the model has 2"):
        check_vocabulary(vocabulary("a", "b"), vocabulary("a"), "small")


@pytest.mark.parametrize("type", ["Q4_0", "IQ4_NL", "Q5_0", "Q8_0"])
def test_matrices_become_smaller_and_nothing_else_changes(type: str, files: tuple[str, str]) -> None:
    checkpoint = open_checkpoint(Path(files[1]))
    smaller = Requantized(checkpoint, type)
    for name, tensor in checkpoint.tensors.items():
        made = smaller.tensors[name]
        assert made.shape == tensor.shape
        if len(tensor.shape) == 1:
            assert made is tensor
            continue
        assert made.type == type
        before, after = (dequantize(t.data, t.type, t.shape) for t in (tensor, made))
        assert (
            np.sqrt(np.mean((before - after) ** 2) / np.mean(before**2))
            < {"4": 0.12, "5": 0.06, "8": 0.01}[next(c for c in type if c.isdigit())]
        )
    checkpoint.close()


def test_what_cannot_be() -> None:
    settings = EngineSettings()
    for wrong in (("eagle",), ("auto", "ngram"), ("off", "off")):
        with pytest.raises(ConfigError, match="neither auto nor off nor a list of prediction, ngram"):
            check_speculation(replace(settings, speculation=wrong))
    with pytest.raises(ConfigError, match="needs --draft-model"):
        check_speculation(replace(settings, speculation=("draft",)))
    with pytest.raises(ConfigError, match="--draft-format q4_0 needs --draft-model"):
        check_speculation(replace(settings, draft_format="q4_0"))
    check_speculation(replace(settings, speculation=("ngram", "draft"), draft_model="x"))


def test_when_it_is_loaded() -> None:
    given = EngineSettings(draft_model="x")
    assert wants_draft_model(given)
    assert wants_draft_model(replace(given, speculation=("ngram", "draft")))
    assert not wants_draft_model(replace(given, speculation=("ngram",)))
    assert not wants_draft_model(replace(given, speculation=("off",)))
    assert not wants_draft_model(EngineSettings())
