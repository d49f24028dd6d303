"""Losses and gradients of frozen, packed models against transformers and peft on the same weights, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
for package in ("transformers", "accelerate", "peft"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'pagoda-llm[finetune]'")

from transformers import AutoModelForCausalLM

from pagoda.errors import ConfigError, UnsupportedError
from pagoda.finetune.data.batches import micro_batches, num_trained
from pagoda.finetune.data.render import Example
from pagoda.finetune.model.adapter import add_adapter, save_adapter, target_modules
from pagoda.finetune.model.build import FrozenModel, build_model
from pagoda.finetune.model.loss import mean_loss, micro_loss
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import family_of
from tiny_models import MIXTURES, TINY, VOCAB, write_gguf, write_safetensors
from tiny_specs import HYBRIDS

UNTRAINED = [
    name
    for name in TINY
    if name.startswith(("stablelm", "mimo", "nemotron", "gemma4", "gemma3n", "qwen2vl", "qwen25vl", "qwen3vl"))
]
FAMILIES = [name for name in TINY if name not in (*MIXTURES, *HYBRIDS, *UNTRAINED, "cohere_plus", "granite4_attention")]
LENGTHS = (7, 12, 20)  # the last is longer than the windows of families that slide
LOSS, GRADIENT = 2e-4, 5e-3  # relative: 16-bit codes of activations

pytestmark = pytest.mark.filterwarnings("default")  # other projects' own warnings


def some_examples() -> list[Example]:
    random = np.random.default_rng(3)
    made = []
    for length in LENGTHS:
        trained = random.random(length) < 0.5
        trained[0], trained[-1] = False, True
        made.append(Example("", random.integers(0, VOCAB, length).astype(np.int32), trained))
    return made


def built(path: Path) -> tuple[FrozenModel, Any]:
    checkpoint = open_checkpoint(path)
    return build_model(checkpoint, threads=1, backward_dtype=torch.float32), family_of(checkpoint)


def adapted(model: FrozenModel, family: Any, targets: tuple[str, ...] = ("all",), **options: Any) -> Any:
    settings: dict[str, Any] = {
        "rank": 4,
        "alpha": 8.0,
        "rslora": False,
        "dropout": 0.0,
        "base_name": "tiny",
        "seed": 1,
    }
    return add_adapter(model, target_modules(family, model, targets), **settings | options)


def with_nonzero_product(module: Any) -> None:
    """B of a new adapter is zero, and A's gradient with it."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(module.named_parameters()):
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def loss_of_logits(model: Any, examples: list[Example]) -> torch.Tensor:
    total = torch.zeros(())
    for example in examples:
        ids = torch.from_numpy(example.ids.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0].float()
        at = torch.from_numpy(np.flatnonzero(example.trained))
        total = total + torch.nn.functional.cross_entropy(logits[at - 1], ids[at], reduction="sum")
    return total


@pytest.mark.parametrize(("name", "dora"), [*((name, False) for name in FAMILIES), ("llama", True), ("qwen2", True)])
def test_losses_and_gradients(tmp_path: Path, name: str, dora: bool) -> None:
    """Ours over packed weights, all examples in one row; theirs over floats, an example at a time."""
    folder = write_safetensors(tmp_path / "base", TINY[name])
    model, family = built(folder)
    ours = adapted(model, family, dora=dora)
    with_nonzero_product(ours)
    examples = some_examples()
    (micro,) = micro_batches(examples, 1000)
    loss = micro_loss(ours.base_model.model.model, model.head, micro)
    loss.backward()
    save_adapter(ours, tmp_path / "adapter")

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
    expected = loss_of_logits(theirs, examples)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=LOSS)
    others = dict(theirs.named_parameters())
    compared = [(n, p.grad, others[n].grad) for n, p in ours.named_parameters() if p.requires_grad]
    assert compared
    for parameter, found, wanted in compared:
        assert float((found - wanted).norm() / wanted.norm()) < GRADIENT, parameter


@pytest.mark.parametrize("type", ["Q8_0", "F16"])
def test_gguf_files_are_the_same_model(tmp_path: Path, type: str) -> None:
    """q and k of a Llama lie in another order there; a folder of the same weights has about the same loss."""
    folder, _ = built(write_safetensors(tmp_path / "folder", TINY["llama"]))
    packed, _ = built(write_gguf(tmp_path / "tiny.gguf", TINY["llama"], type=type))
    losses = [mean_loss(model.causal.model, model.head, some_examples(), 100) for model in (folder, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02 if type == "Q8_0" else 1e-3)


def test_examples_do_not_see_each_other(tmp_path: Path) -> None:
    model, _ = built(write_safetensors(tmp_path / "base", TINY["llama"]))
    examples = some_examples()
    together = mean_loss(model.causal.model, model.head, examples, 1000)
    alone = sum(mean_loss(model.causal.model, model.head, [e], 1000) * e.num_trained for e in examples)
    assert together == pytest.approx(alone / num_trained(examples), rel=1e-5)


def test_targets(tmp_path: Path) -> None:
    model, family = built(write_safetensors(tmp_path / "base", TINY["llama"]))
    assert target_modules(family, model, ("q", "v")) == ["q_proj", "v_proj"]
    with pytest.raises(ConfigError, match="x: adapters go on q, k, v"):
        target_modules(family, model, ("q", "x"))
    with pytest.raises(ConfigError, match="no such matrices"):
        target_modules(family, model, ("qkv",))
    with pytest.raises(ConfigError, match="--rank 65: the narrowest matrix"):
        adapted(model, family, rank=65)


def test_mixtures_are_refused(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "base", TINY[next(iter(MIXTURES))])
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        built(folder)


@pytest.mark.parametrize("name", UNTRAINED)
def test_families_that_are_not_trained_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not trained"):
        built(write_safetensors(tmp_path / "base", TINY[name]))


def test_an_adapter_that_is_switched_off_leaves_the_base(tmp_path: Path) -> None:
    model, family = built(write_safetensors(tmp_path / "base", TINY["llama"]))
    (example,) = some_examples()[:1]
    base = mean_loss(model.causal.model, model.head, [example], 64)
    made = adapted(model, family)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    decoder = made.base_model.model.model
    assert mean_loss(decoder, model.head, [example], 64) != pytest.approx(base, rel=1e-3)
    with made.disable_adapter():
        assert mean_loss(decoder, model.head, [example], 64) == base
