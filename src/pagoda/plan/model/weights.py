"""Bytes of a model's weights in each format, tensor by tensor.

Three kinds of formats:

- plain: every parameter in so many bytes. `int8` and `int4` are the ideal, without scales.
- of GPU servers: the layers' matrices quantized, embedding, head and norms in 16 bits.
    gptq, awq   4 bits, and per 128 weights of a row an f16 scale and a 4-bit zero point; gptq also says each column's
                group in 32 bits. GPTQ, arXiv:2210.17323; AWQ, arXiv:2306.00978.
    nf4         4 bits, and per 64 weights an f32 scale; nf4-dq: the scale in 8 bits, and per 256 of them an f32.
                QLoRA, arXiv:2305.14314.
    fp8         1 byte, and an f32 scale a matrix.
- GGUF: the mixes of llama.cpp by name, each tensor in the type that the mix gives it; a pure type by its name too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

from pagoda.errors import ConfigError
from pagoda.formats.blocks import BLOCK_TYPES, NVFP4, UNREAD_TYPES
from pagoda.plan.model.shapes import EMBEDDING, OUTPUT, ModelShape, TensorShape
from pagoda.quantize.gguf.mixes import MIXES, choose_types, is_quantizable

GROUP = 128  # of GPTQ and AWQ
STORED = "stored"  # as the file has it
ALL_TYPES = {**BLOCK_TYPES, **UNREAD_TYPES, "NVFP4": NVFP4}
# Of other things than weights.
INTERNAL = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
NAMED_TYPES = [name for name in ALL_TYPES if name not in INTERNAL]

# What a device computes products in, the first that it has: weights of few bits are widened first.
FLOATS = frozenset({"F32", "F16", "BF16"})
HALF = ("fp16", "bf16", "fp32")
INTEGER = ("int8", *HALF)


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A model in one format: bytes by tensor name."""

    format: str
    tensors: Mapping[str, int]
    about: str
    computes: tuple[str, ...]  # number types of the products, best first
    types: Mapping[str, str] | None = None  # block types by tensor name, of formats that Pagoda's own kernels know
    is_stored: bool = False  # this is what the model's file holds

    @property
    def total(self) -> int:
        return sum(self.tensors.values())

    def computes_on(self, kind: str) -> tuple[str, ...]:
        """On CPUs, block formats are multiplied as integers; a GPU widens them to 16 bits."""
        is_block = self.types is not None and not set(self.types.values()) <= FLOATS
        return INTEGER if is_block and kind != "gpu" else self.computes


@dataclass(frozen=True, slots=True)
class Format:
    """One row of the table: `bytes_of` gives the bytes of a tensor."""

    about: str
    computes: tuple[str, ...]
    bytes_of: Callable[[TensorShape], float]


def _all(num_bytes: float) -> Callable[[TensorShape], float]:
    return lambda tensor: num_bytes * tensor.elements


def _layers(quantized: Callable[[TensorShape], float]) -> Callable[[TensorShape], float]:
    """`quantized` for the matrices of layers, 16 bits for the rest."""

    def size(tensor: TensorShape) -> float:
        outside = tensor.name in (EMBEDDING, OUTPUT) or not tensor.is_matrix
        return 2 * tensor.elements if outside or not is_quantizable(tensor.name, tensor.shape) else quantized(tensor)

    return size


def _grouped(tensor: TensorShape) -> float:
    groups = -(-tensor.shape[-1] // GROUP) * prod(tensor.shape[:-1])
    return tensor.elements / 2 + groups * (2 + 0.5)


FORMATS: dict[str, Format] = {
    "fp32": Format("32-bit floats", ("fp32",), _all(4)),
    "fp16": Format("16-bit floats", HALF, _all(2)),
    "bf16": Format("bfloat16", ("bf16", "fp16", "fp32"), _all(2)),
    "fp8": Format("8-bit floats in layers, 16 bits around them", ("fp8", *HALF), _layers(_all(1))),
    "int8": Format("8-bit integers, ideal: no scales", ("int8", *HALF), _all(1)),
    "int4": Format("4-bit integers, ideal: no scales", HALF, _all(0.5)),
    "gptq": Format(f"GPTQ, 4 bits, groups of {GROUP}", HALF, _layers(lambda t: _grouped(t) + 4 * t.shape[-1])),
    "awq": Format(f"AWQ, 4 bits, groups of {GROUP}", HALF, _layers(_grouped)),
    "nf4": Format("NF4, 4 bits, blocks of 64", ("bf16", "fp16", "fp32"), _layers(_all(0.5 + 4 / 64))),
    "nf4-dq": Format(
        "NF4 with double quantization", ("bf16", "fp16", "fp32"), _layers(_all(0.5 + 1 / 64 + 4 / (64 * 256)))
    ),
}
PLAIN_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
ALIASES = {"f32": "fp32", "f16": "fp16", "q8": "q8_0", "fp4": "nf4", "gptq-int4": "gptq", "awq-int4": "awq"}


def format_names() -> tuple[str, ...]:
    """All names that `weights_in` takes, of GGUF mixes and types in lower case."""
    gguf = [name for name in MIXES if name not in ALIASES and name not in FORMATS]
    return (*FORMATS, *gguf, *(name.lower() for name in NAMED_TYPES if name.lower() not in (*gguf, *ALIASES, *FORMATS)))


def weights_in(shape: ModelShape, format: str) -> ModelWeights:
    """The model's weights in `format`; `stored`: as its file has them. ConfigError for a name that is none."""
    name = format.strip().lower()
    if name == STORED:
        return _stored(shape)
    name = ALIASES.get(name, name)
    if shape.path is not None and name == (shape.stored_as or "").lower():
        return _stored(shape)
    if name in FORMATS:
        row = FORMATS[name]
        types = {t.name: PLAIN_TYPES[name] for t in shape.tensors} if name in PLAIN_TYPES else None
        return ModelWeights(
            name, {t.name: round(row.bytes_of(t)) for t in shape.tensors}, row.about, row.computes, types
        )
    if name in MIXES:
        return _mix(shape, name)
    if name.upper() in NAMED_TYPES:
        return _pure(shape, name.upper())
    near = difflib.get_close_matches(name, format_names(), 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(format_names())}"
    raise ConfigError(f"--format: there is no format {format!r}; {hint}")


def default_format(shape: ModelShape, kind: str) -> str:
    """The format of the file if there is one, else the usual one on a device of `kind`."""
    if shape.tensors[0].type is not None:
        return STORED
    return shape.stored_as or ("fp16" if kind == "gpu" else "q4_k_m")


def _stored(shape: ModelShape) -> ModelWeights:
    if any(tensor.type is None for tensor in shape.tensors):
        plain = weights_in(replace(shape, path=None), shape.stored_as or "fp16")
        return replace(plain, is_stored=shape.stored_as is not None)
    types = {tensor.name: str(tensor.type) for tensor in shape.tensors}
    return replace(_gguf(shape, (shape.stored_as or STORED).lower(), "as in the file", types), is_stored=True)


def _gguf(shape: ModelShape, name: str, about: str, types: Mapping[str, str]) -> ModelWeights:
    return ModelWeights(name, {t.name: _typed(t, types[t.name]) for t in shape.tensors}, about, HALF, types)


def _typed(tensor: TensorShape, type: str) -> int:
    """Bytes in a GGUF type; a row that the block does not divide is padded."""
    block = ALL_TYPES[type]
    return prod(tensor.shape[:-1]) * -(-tensor.shape[-1] // block.elements) * block.bytes


def _mix(shape: ModelShape, name: str) -> ModelWeights:
    shapes = {t.name: t.shape for t in shape.tensors}
    types = dict.fromkeys(shapes, "F32")
    choices = choose_types(shapes, types, MIXES[name], heads_per_kv=shape.heads_per_kv)
    return _gguf(shape, name, MIXES[name].about, {name: choice.type for name, choice in choices.items()})


def _pure(shape: ModelShape, type: str) -> ModelWeights:
    """Layers in one type; head and embedding in what llama.cpp gives them there. Its finer rules are left out."""
    tiny = type.startswith(("IQ1", "IQ2"))
    head, embedding = ("Q5_K", "Q2_K") if tiny else ("Q8_0", "Q8_0") if type == "MXFP4" else ("Q6_K", type)

    def type_of(tensor: TensorShape) -> str:
        if tensor.name == shape.head.name:
            return head
        if tensor.name == EMBEDDING:
            return embedding
        return type if is_quantizable(tensor.name, tensor.shape) else "F32"

    about = f"{ALL_TYPES[type].bits_per_weight:.2f} bits in layers"
    return _gguf(shape, type.lower(), about, {t.name: type_of(t) for t in shape.tensors})
