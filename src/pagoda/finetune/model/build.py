"""A checkpoint as transformers' model of its family, its weights packed and frozen.

The model is built without memory for its parameters; then each linear becomes a `FrozenLinear`, the embedding is read
from the file, and what remains (norms) is loaded in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pagoda import _native
from pagoda.backends.cores import usable_cores
from pagoda.backends.packed_weights import PackedWeights
from pagoda.errors import UnsupportedError
from pagoda.finetune.model.attention import NAME as ATTENTION
from pagoda.finetune.model.frozen import FrozenEmbedding, FrozenLinear
from pagoda.finetune.model.head_loss import Head
from pagoda.finetune.model.packed_matrix import PackedMatrix
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.quantized import as_floats
from pagoda.models.hugging_face import HuggingFaceView, as_hugging_face
from pagoda.models.layers import Decoder
from pagoda.models.registry import family_of, load_model
from pagoda.types import FloatArray

QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # transformers would act on them


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """transformers' decoder without its head, the head, and what all weights take."""

    causal: Any  # the PreTrainedModel, whose `model` is the decoder
    head: Head
    decoder: Decoder
    packed_bytes: int


def build_model(
    checkpoint: Checkpoint,
    *,
    threads: int = 0,
    activation_bits: int = 16,
    backward_dtype: torch.dtype | None = None,
    progress: Callable[[str, int, int | None], None] = lambda what, done, total: None,
) -> FrozenModel:
    """The checkpoint's model, ready for adapters. `progress` is told of each linear that is packed.

    UnsupportedError for families that are not trained, as those whose layers are not plain linears in transformers.
    """
    family = family_of(checkpoint)
    if not family.is_trained:
        raise UnsupportedError(f"{family.name} models are served, but not trained here yet")
    view = as_hugging_face(checkpoint)
    decoder = load_model(view)
    causal = _empty_model(dict(view.metadata))
    runtime = _native.Runtime(threads or usable_cores(), None, activation_bits)
    filler = _Filler(view, PackedWeights(runtime), backward_dtype)
    linears = [(name, module) for name, module in causal.named_modules() if isinstance(module, nn.Linear)]
    for count, (name, module) in enumerate(linears):
        if name != "lm_head":
            _put(causal, name, filler.linear(name, module))
        progress("packing", count + 1, len(linears))
    _put(causal, "lm_head", nn.Identity())
    embedding = causal.model.embed_tokens
    _put(causal, "model.embed_tokens", filler.embedding(embedding))
    filler.fill_rest(causal)
    head = Head(filler.matrix(decoder.output.name), decoder.logit_scale, decoder.logit_softcap)
    return FrozenModel(causal.requires_grad_(False), head, decoder, filler.weights.num_bytes)


def _empty_model(config: dict[str, Any]) -> Any:
    kept = {key: value for key, value in config.items() if key not in (*QUANTIZATION_KEYS, "model_type")}
    model_type = config["model_type"]
    try:
        made = AutoConfig.for_model(model_type, **kept)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except (ValueError, KeyError) as error:
        raise UnsupportedError(f"transformers cannot build a {model_type!r} for training: {error}") from error
    model.config._attn_implementation = ATTENTION
    return model


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


class _Filler:
    """Makes frozen modules out of a view's tensors."""

    def __init__(
        self, view: Checkpoint | HuggingFaceView, weights: PackedWeights, backward_dtype: torch.dtype | None
    ) -> None:
        self.view = view
        self.weights = weights
        self._backward_dtype = backward_dtype

    def matrix(self, tensor_name: str) -> PackedMatrix:
        made = PackedMatrix(self.weights, self.view.tensors[tensor_name], self._backward_dtype)
        self.view.release(tensor_name)
        return made

    def linear(self, name: str, old: nn.Linear) -> FrozenLinear:
        bias = self._floats(f"{name}.bias") if old.bias is not None else None
        return FrozenLinear(self.matrix(f"{name}.weight"), bias)

    def embedding(self, old: nn.Module) -> FrozenEmbedding:
        """With the scale that some families' embeddings multiply by."""
        scale = getattr(old, "embed_scale", 1.0)
        return FrozenEmbedding(self.view.tensors["model.embed_tokens.weight"], float(scale))

    def fill_rest(self, model: nn.Module) -> None:
        """Parameters that are still without memory: norms. UnsupportedError for any that are matrices."""
        for name, parameter in list(model.named_parameters()):
            if not parameter.is_meta:
                continue
            if parameter.ndim > 1 or name not in self.view.tensors:
                raise UnsupportedError(
                    f"{name} is no plain linear layer in transformers, and cannot be kept packed: this family "
                    "(a mixture of experts?) is served here, but not trained yet"
                )
            parent, _, last = name.rpartition(".")
            values = torch.from_numpy(self._floats(name))
            setattr(model.get_submodule(parent), last, nn.Parameter(values, requires_grad=False))

    def _floats(self, name: str) -> FloatArray:
        values = as_floats(self.view.tensors[name])
        return values if values.flags.writeable else values.copy()
