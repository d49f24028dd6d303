"""Memory of fine-tuning: full, LoRA (Hu et al., arXiv:2106.09685) and QLoRA (Dettmers et al., arXiv:2305.14314).

Bytes a parameter, with Adam in mixed precision (Rajbhandari et al., ZeRO, arXiv:1910.02054, section 3.1):

    full    2 weights + 2 gradients + 4 + 4 + 4 for the 32-bit copy and Adam's two moments
    lora    2 for the frozen base; 4 weights + 4 gradients + 8 moments for the adapters, which are kept in 32 bits
    qlora   the frozen base's layers in NF4 with double quantization, 4.13 bits, the rest in 16; adapters as above;
            and the largest matrix in 16 bits, widened for its product

Activations are what autograd keeps of each token for the way back, counted from transformers' Llama with fused
attention (h hidden, f feed-forward, D head size, H and K heads), bytes a token and layer:

    full    16 h + 4 H D + 4 K D + 8 f      norms keep 32-bit inputs, matrices their 16-bit inputs
    lora     8 h + 4 H D + 4 K D + 6 f + Σ (4 in + 8 r)      frozen matrices need no inputs, adapters 32-bit ones

Checkpointing keeps 2 h of each layer and one layer whole. The loss takes 10 bytes a token and vocabulary entry: logits,
their 32-bit logarithms, and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from pagoda.errors import ConfigError
from pagoda.plan.model.shapes import ModelShape, TensorShape

Method = Literal["full", "lora", "qlora"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a code; a block's scale in 8 bits; a 32-bit scale for 256 of those
LOGIT_BYTES = 10
RUNTIME_BYTES = 1_000_000_000  # CUDA context, kernels, workspaces

# What adapters are put on, as peft names the matrices of a Llama, without "_proj"; GGUF's names in `tensors`.
TARGETS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "qkv": "attn_qkv",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
ALL = "all"  # every matrix of the layers, as QLoRA does


@dataclass(frozen=True, slots=True)
class FineTuneMemory:
    """Bytes on one device, by what they are for."""

    weights: int
    gradients: int
    optimizer: int  # Adam's moments, and full fine-tuning's 32-bit copy
    adapters: int  # the adapters themselves
    activations: int
    loss: int
    runtime: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def adapted(shape: ModelShape, targets: Sequence[str]) -> tuple[TensorShape, ...]:
    """The matrices that get adapters. ConfigError for an unknown target, or one that the model does not have."""
    if list(targets) == [ALL]:
        return tuple(t for t in shape.layer_matrices if not t.is_expert)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise ConfigError(f"adapters go on {', '.join(TARGETS)} or {ALL}, not on {', '.join(unknown) or 'nothing'}")
    names = {TARGETS[target] for target in targets}
    found = tuple(t for t in shape.layer_matrices if t.name.split(".")[-2] in names)
    there = {t.name.split(".")[-2] for t in found}
    if missing := sorted(target for target in targets if TARGETS[target] not in there):
        raise ConfigError(f"{shape.name} has no matrices {', '.join(missing)}: its {shape.architecture} fuses them")
    return found


def lora_parameters(shape: ModelShape, rank: int, targets: Sequence[str]) -> int:
    """Trainable parameters: each target of shape (out, in) gets matrices of rank × in and out × rank."""
    if rank < 1:
        raise ConfigError(f"an adapter's rank is 1 or more, not {rank}")
    return sum(rank * (t.shape[-1] + t.shape[-2]) for t in adapted(shape, targets))


def finetune_memory(
    shape: ModelShape,
    method: Method,
    *,
    rank: int = 16,
    targets: Sequence[str] = ("q", "v"),
    batch: int = 1,
    length: int = 2048,
    checkpointing: bool = True,
) -> FineTuneMemory:
    """Bytes on one device for training on `batch` sequences of `length` tokens at a time."""
    if method not in METHODS:
        raise ConfigError(f"fine-tuning is one of {', '.join(METHODS)}, not {method!r}")
    if batch < 1 or length < 1:
        raise ConfigError(f"a batch has 1 sequence of 1 token or more, not {batch} of {length}")
    tokens = batch * length
    if method == "full":
        trained = shape.parameters
        state = {"gradients": 2 * trained, "optimizer": (4 + 8) * trained, "adapters": 0}
    else:
        trained = lora_parameters(shape, rank, targets)
        state = {"gradients": 4 * trained, "optimizer": 8 * trained, "adapters": 4 * trained}
    layer = _layer_bytes(shape, None if method == "full" else adapted(shape, targets), rank)
    kept = 2 * shape.hidden_size * shape.num_layers + layer if checkpointing else layer * shape.num_layers
    return FineTuneMemory(
        weights=round(base_bytes(shape, method)),
        activations=round(tokens * kept),
        loss=tokens * LOGIT_BYTES * shape.vocab_size,
        runtime=RUNTIME_BYTES,
        **state,
    )


def base_bytes(shape: ModelShape, method: Method) -> float:
    """Bytes of the base model: 16-bit, or NF4 with its largest matrix decoded to 16 bits."""
    if method != "qlora":
        return 2.0 * shape.parameters
    layers = sum(t.elements for t in shape.layer_matrices)
    widened = max(t.elements // (shape.num_experts or 1 if t.is_expert else 1) for t in shape.layer_matrices)
    return NF4_BYTES * layers + 2 * (shape.parameters - layers) + 2 * widened


def _layer_bytes(shape: ModelShape, adapters: Sequence[TensorShape] | None, rank: int) -> float:
    """Bytes of activations that one layer keeps of each token. `adapters`: None when all weights are trained."""
    kind = shape.attention[0]
    heads = 2 * kind.num_heads * (kind.key_dim + kind.value_dim)
    heads += 2 * kind.num_kv_heads * (kind.key_dim + kind.value_dim)
    if adapters is None:
        return 16 * shape.hidden_size + heads + 8 * _ffn_width(shape)
    inputs = sum(4 * t.shape[-1] + 8 * rank for t in adapters) / shape.num_layers
    return 8 * shape.hidden_size + heads + 6 * _ffn_width(shape) + inputs


def _ffn_width(shape: ModelShape) -> int:
    """Feed-forward width of the widest layer; with experts, that of the experts active for one token."""
    widths: dict[int, int] = {}
    for t in shape.layer_matrices:
        if "ffn_down" in t.name and t.layer is not None:
            widths[t.layer] = widths.get(t.layer, 0) + t.shape[-1] * (shape.experts_used if t.is_expert else 1)
    return max(widths.values(), default=0)
