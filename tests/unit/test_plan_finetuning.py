"""Fine-tuning memory: textbook counts, and what torch's autograd keeps."""

import pytest

from pagoda.errors import ConfigError
from pagoda.plan.advice.finetuning import METHODS, base_bytes, finetune_memory, lora_parameters
from pagoda.plan.model.config_shapes import shape_from_config
from pagoda.plan.model.models import builtin_shape

LLAMA = builtin_shape("llama-3-8b")


def test_lora_parameters_of_llama_3_8b() -> None:
    assert lora_parameters(LLAMA, 16, ("q", "v")) == 6_815_744
    assert lora_parameters(LLAMA, 16, ("q", "k", "v")) == 9_437_184
    assert lora_parameters(LLAMA, 16, ("all",)) == 41_943_040
    assert lora_parameters(LLAMA, 8, ("q", "v")) * 2 == lora_parameters(LLAMA, 16, ("q", "v"))


def test_full_takes_sixteen_bytes_a_parameter() -> None:
    memory = finetune_memory(LLAMA, "full")
    assert memory.weights + memory.gradients + memory.optimizer == 16 * LLAMA.parameters
    assert memory.total > 128e9


def test_methods_shrink() -> None:
    full, lora, qlora = (finetune_memory(LLAMA, method).total for method in METHODS)
    assert full > 4 * lora
    assert lora > 1.6 * qlora
    assert base_bytes(LLAMA, "lora") == 2 * LLAMA.parameters
    assert finetune_memory(LLAMA, "lora").total < 24e9
    assert 5.5e9 < base_bytes(LLAMA, "qlora") < 6e9  # bitsandbytes reports 5.6 GB for it, 0.1 is the widened matrix


def test_qlora_of_70b_fits_48_gb() -> None:
    """The QLoRA paper's claim for 65B on one GPU of 48 GB."""
    memory = finetune_memory(builtin_shape("llama-2-70b"), "qlora", rank=16, targets=("all",), length=512)
    assert 38e9 < memory.total < 48e9


# Saved by autograd a token and layer, measured through torch.autograd.graph.saved_tensors_hooks on transformers'
# LlamaForCausalLM in bfloat16 with sdpa, 2 × 128 tokens; what belongs to the final norm and the loss taken off.
SMALL = shape_from_config(
    {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
    },
    "small",
)


@pytest.mark.parametrize(("method", "measured"), [("full", 23_080), ("lora", 20_117)])
def test_activations_are_what_autograd_keeps(method: str, measured: float) -> None:
    memory = finetune_memory(SMALL, method, rank=8, batch=2, length=128, checkpointing=False)  # type: ignore[arg-type]
    assert memory.activations / 256 / 3 == pytest.approx(measured, rel=0.01)


def test_checkpointing_keeps_one_layer() -> None:
    plain = finetune_memory(SMALL, "full", checkpointing=False).activations
    layer = plain / 3
    assert finetune_memory(SMALL, "full").activations == layer + 2048 * 2 * 512 * 3
    assert (
        finetune_memory(LLAMA, "full").activations
        < finetune_memory(LLAMA, "full", checkpointing=False).activations / 10
    )


def test_activations_grow_with_tokens() -> None:
    one, four = (finetune_memory(LLAMA, "lora", batch=batch) for batch in (1, 4))
    assert (four.activations, four.loss) == (4 * one.activations, 4 * one.loss)
    assert four.weights == one.weights


def test_nonsense_is_refused() -> None:
    for targets, text in ((("x",), "not on x"), ((), "not on nothing"), (("qkv",), "no matrices qkv")):
        with pytest.raises(ConfigError, match=text):
            lora_parameters(LLAMA, 16, targets)
    with pytest.raises(ConfigError, match="rank is 1 or more"):
        lora_parameters(LLAMA, 0, ("q",))
    with pytest.raises(ConfigError, match="1 sequence of 1 token"):
        finetune_memory(LLAMA, "lora", batch=-1)
    with pytest.raises(ConfigError, match="one of full, lora, qlora"):
        finetune_memory(LLAMA, "half")  # type: ignore[arg-type]
