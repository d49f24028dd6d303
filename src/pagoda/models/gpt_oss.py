"""gpt-oss: a mixture of experts in every layer, biases on everything, a sink in each head's softmax, and every other
layer, from the first on, slides.

Its experts' activation is clamped (`clamped_swiglu`). Hugging Face folders hold the stacks of experts transposed, a
gate's column before an up's; in MXFP4 the rows lie so. GGUF files hold gates and ups apart.

Its rotary embedding is YaRN's with `truncate` false, as the publisher's config.json has it. GGUF has no key for that,
and is read so too; llama.cpp rounds there (docs/compatibility.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pagoda.backends.arithmetic import SWIGLU_ALPHA, SWIGLU_LIMIT
from pagoda.backends.specs import ExpertBiases, ExpertsSpec
from pagoda.errors import UnsupportedError
from pagoda.formats.mxfp4 import Mxfp4Tensor
from pagoda.formats.quantized import FLOAT_TYPES, QuantizedTensor
from pagoda.models.family import Family, ModelFile
from pagoda.models.layers import Attention, Decoder, Experts
from pagoda.models.names import TENSORS
from pagoda.models.reader import DecoderReader, LayerKind, read_layer_types, read_sizes, read_window
from pagoda.models.rope import read_rope
from pagoda.types import RawTensor

_EXPERTS = "model.layers.{i}.mlp.experts"


def build(file: ModelFile) -> Decoder:
    sizes = read_sizes(file)
    _check_activation(file)
    rope = read_rope(file, sizes.head_dim)
    window = read_window(file, sizes.max_context)
    slides = read_layer_types(file, sizes.num_layers) or [layer % 2 == 0 for layer in range(sizes.num_layers)]
    return _Reader(file, sizes, activation="clamped_swiglu").decoder(
        [LayerKind(rope, window if sliding else None) for sliding in slides]
    )


def _check_activation(file: ModelFile) -> None:
    """GGUF does not state it."""
    for key, usual in (("swiglu_alpha", SWIGLU_ALPHA), ("swiglu_limit", SWIGLU_LIMIT)):
        stated = file.settings.number(key, usual)
        if stated != usual:
            raise UnsupportedError(f"{key} is {stated:g}; only {usual:g} is supported")


class _Reader(DecoderReader):
    def attention(self, layer: int, kind: LayerKind) -> Attention:
        suffix = "weight" if self.file.is_gguf else ""
        sinks = self.file.tensor("attn_sinks", (self.sizes.num_heads,), layer, suffix=suffix)
        attention = super().attention(layer, kind)
        assert isinstance(attention, Attention)
        return replace(attention, sinks=sinks)

    def ffn(self, layer: int) -> Experts:
        sizes = self.experts
        if sizes is None:
            raise UnsupportedError("a gpt-oss without experts is not supported")
        router = self.linear("ffn_router", sizes.count, self.sizes.hidden_size, layer, bias=True)
        spec = ExpertsSpec(sizes.used, normalize=True, activation=self.activation)
        read = self._gguf_experts if self.file.is_gguf else self._folder_experts
        (gate, up, down), biases = read(layer, sizes.count, sizes.ffn_size, self.sizes.hidden_size)
        return Experts(router, gate, up, down, spec, biases=biases)

    def _gguf_experts(self, layer: int, n: int, f: int, e: int) -> _Parts:
        shapes = {"ffn_gate_exps": (f, e), "ffn_up_exps": (f, e), "ffn_down_exps": (e, f)}
        gate, up, down = (self.file.expert_tensors(role, n, shape, layer) for role, shape in shapes.items())
        of_gate, of_up, of_down = (
            self.file.tensor(role, (n, rows), layer, suffix="bias") for role, (rows, _) in shapes.items()
        )
        return (gate, up, down), (of_gate, of_up, of_down)

    def _folder_experts(self, layer: int, n: int, f: int, e: int) -> _Parts:
        def bias(role: str, rows: int) -> RawTensor:
            return self.file.tensor(role, (n, rows), layer, suffix="")

        both = self._stack("ffn_gate_up_exps", layer, n, 2 * f, e)
        down = self._stack("ffn_down_stack", layer, n, e, f)
        of_both, of_down = bias("ffn_gate_up_bias", 2 * f), bias("ffn_down_bias", e)
        gate, up = (tuple(_every_second_row(both(i), first) for i in range(n)) for first in (0, 1))
        of_gate, of_up = (_every_second_column(of_both, first) for first in (0, 1))
        return (gate, up, tuple(down(i) for i in range(n))), (of_gate, of_up, of_down)

    def _stack(self, role: str, layer: int, n: int, rows: int, columns: int) -> Callable[[int], RawTensor]:
        """Gives matrix i (rows, columns) of a folder's stack: as MXFP4 has it, or transposed."""
        name = self.file.tensor_name(role, layer, suffix="")
        stack = self.file.tensor(role, (n, None, None), layer, suffix="")
        wanted = (rows, columns) if isinstance(stack, QuantizedTensor) else (columns, rows)
        stack = self.file.tensor(role, (n, *wanted), layer, suffix="")
        if isinstance(stack, Mxfp4Tensor):
            return stack.matrix
        if stack.type not in FLOAT_TYPES:
            raise UnsupportedError(f"tensor {name!r} has type {stack.type}; experts of gpt-oss are MXFP4 or floats")
        return lambda i: stack.matrix(i).transposed()


_Matrices = tuple[RawTensor, ...]
_Parts = tuple[tuple[_Matrices, _Matrices, _Matrices], ExpertBiases]


# Views of floats: an element's bytes are the last dimension, and what reads them copies a matrix at a time.


def _every_second_row(raw: RawTensor, first: int) -> RawTensor:
    if isinstance(raw, Mxfp4Tensor):
        return raw.every_second_row(first)
    data = raw.data[first::2]
    return replace(raw, name=f"{raw.name}[{first}::2]", shape=(len(data), raw.shape[1]), data=data)


def _every_second_column(raw: RawTensor, first: int) -> RawTensor:
    data = raw.data.reshape(*raw.shape, -1)[:, first::2]
    part_of = raw.part_of or raw.name
    return replace(raw, name=f"{raw.name}[:, {first}::2]", shape=data.shape[:2], data=data, part_of=part_of)


FAMILY = Family(
    name="gpt_oss",
    gguf="gpt-oss",
    hf_class="GptOssForCausalLM",
    build=build,
    usual_context=131_072,
    tensors=TENSORS
    | {
        "attn_sinks": ("blk.{i}.attn_sinks", "model.layers.{i}.self_attn.sinks"),
        "ffn_norm": ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        "ffn_router": ("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.router"),
        "ffn_gate_up_exps": ("", f"{_EXPERTS}.gate_up_proj"),
        "ffn_gate_up_bias": ("", f"{_EXPERTS}.gate_up_proj_bias"),
        "ffn_gate_exps": ("blk.{i}.ffn_gate_exps", ""),
        "ffn_up_exps": ("blk.{i}.ffn_up_exps", ""),
        "ffn_down_exps": ("blk.{i}.ffn_down_exps", ""),
        "ffn_down_bias": ("", f"{_EXPERTS}.down_proj_bias"),
    },
    defaults={
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "head_dim": 64,
        "attention_bias": True,
        "sliding_window": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
    },
    gguf_defaults={"attention.sliding_window": 128},
    extra_tensors=lambda settings: (
        (f"blk.{layer}.attn_sinks.weight", (settings.integer("num_attention_heads", high=1 << 12),))
        for layer in range(settings.integer("num_hidden_layers", high=1 << 12))
    ),
    qkv_bias=True,
    output_bias=True,
    expert_bias=True,
    window_pattern=2,
    gguf_whole_yarn=False,
    is_converted=False,
    compared=("llama.cpp 0.3.36: log-probabilities",),
    not_covered="adapters of experts; conversion; calibration",
)
