"""Named mixes: which block type each tensor of a GGUF file gets.

A mix has a base type and rules that give more bits to the tensors that lose the most: the output matrix (and the
embedding where the two are one), attention values, and feed-forward down projections of the first, the last and every
third layer. Names and rules are llama.cpp's (`llama-quant.cpp`), so that a name means what users know: queries, keys
and values in one matrix count as values, and in mixtures of eight experts attention, a small part of them, gets more.

A row that the type's block does not divide gets a fallback of nearly as many bits in blocks of 32, else F16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pagoda.errors import ConfigError
from pagoda.formats.blocks import BLOCK_TYPES, READ_ONLY

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor stands in its model."""

    layer: int
    num_layers: int
    heads_per_kv: int = 1  # query heads that share one KV head
    has_imatrix: bool = False
    num_experts: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose name contains `part`, where `where` holds, get `type`."""

    part: str
    type: str
    where: Callable[[TensorPlace], bool] = lambda place: True


@dataclass(frozen=True, slots=True)
class Mix:
    """The first rule that fits decides, else the base type; `file_type` is its number in `general.file_type`."""

    base: str
    file_type: int
    about: str
    rules: tuple[Rule, ...] = ()


def _first(share: int) -> Callable[[TensorPlace], bool]:
    """The first 1/share of the layers."""
    return lambda place: place.layer < place.num_layers // share


def _more_bits(place: TensorPlace) -> bool:
    """The first eighth of the layers, the last, and every third between."""
    i, n = place.layer, place.num_layers
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _shared_kv(place: TensorPlace) -> bool:
    """Values that many query heads share are small, and weigh much."""
    return place.heads_per_kv >= 4


def _of_70b(place: TensorPlace) -> bool:
    """Llama 2 and 3 70B and Qwen 72B, by their shape."""
    return place.num_layers == 80 and place.heads_per_kv > 1


_VALUES, _DOWN, _ATTN_OUT = "attn_v.", "ffn_down", "attn_output."
_FUSED, _KEYS = "attn_qkv.", "attn_k."
_EIGHT = 8  # experts, of which llama.cpp makes an exception
_Q5_OF_EIGHT = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")  # mixes, for attention's output
_VALUES_OF_70B = Rule(_VALUES, "Q5_K", _of_70b)
_WIDER_ENDS = (Rule(_VALUES, "Q6_K", _more_bits), _VALUES_OF_70B, Rule(_DOWN, "Q6_K", _more_bits))
_WIDER_STARTS = (Rule(_VALUES, "Q5_K", lambda p: p.layer < 4 or _of_70b(p)), Rule(_DOWN, "Q5_K", _first(8)))
_WIDER_HALF = (Rule(_VALUES, "Q5_K"), Rule(_DOWN, "Q5_K"), Rule(_ATTN_OUT, "Q5_K"))
_IQ4_RULES = (
    Rule(_VALUES, "Q5_K", _shared_kv),
    Rule(_DOWN, "Q5_K", lambda p: not p.has_imatrix and _first(8)(p)),
)


def _guarded(type: str) -> tuple[Rule, ...]:
    """With an importance matrix the first down projections need a minimum besides the scale."""
    return (Rule(_DOWN, type, lambda place: place.has_imatrix and _first(8)(place)),)


MIXES: dict[str, Mix] = {
    "f32": Mix("F32", 0, "32-bit floats"),
    "f16": Mix("F16", 1, "16-bit floats"),
    "bf16": Mix("BF16", 32, "bfloat16"),
    "q8_0": Mix("Q8_0", 7, "8 bits, nearly lossless"),
    "q6_k": Mix("Q6_K", 18, "6 bits, hardly a loss"),
    "q5_k_m": Mix("Q5_K", 17, "5 bits, 6 where it matters", _WIDER_ENDS),
    "q5_k_s": Mix("Q5_K", 16, "5 bits", (_VALUES_OF_70B,)),
    "q4_k_m": Mix("Q4_K", 15, "4 bits, 6 where it matters: the usual choice", _WIDER_ENDS),
    "q4_k_s": Mix("Q4_K", 14, "4 bits, 5 where it matters", _WIDER_STARTS),
    "q3_k_l": Mix("Q3_K", 13, "3 bits, 5 for half the tensors", _WIDER_HALF),
    "q3_k_m": Mix(
        "Q3_K",
        12,
        "3 bits, 4 for half the tensors",
        (
            Rule(_VALUES, "Q5_K", lambda place: place.layer < 2 or _of_70b(place)),
            Rule(_VALUES, "Q4_K"),
            Rule(_DOWN, "Q5_K", _first(16)),
            Rule(_DOWN, "Q4_K"),
            Rule(_ATTN_OUT, "Q4_K"),
        ),
    ),
    "q3_k_s": Mix("Q3_K", 11, "3 bits", (_VALUES_OF_70B,)),
    "q2_k": Mix(
        "Q2_K",
        10,
        "2 bits, 3 for half the tensors: a clear loss",
        (
            _VALUES_OF_70B,
            Rule(_VALUES, "Q4_K", _shared_kv),
            Rule(_VALUES, "Q3_K"),
            Rule(_DOWN, "Q3_K"),
            Rule(_ATTN_OUT, "Q3_K"),
        ),
    ),
    "iq4_xs": Mix("IQ4_XS", 30, "4 bits on uneven levels, smaller than q4_k_s", _IQ4_RULES),
    "iq4_nl": Mix("IQ4_NL", 25, "4 bits on uneven levels, for rows that 256 does not divide", _IQ4_RULES),
    "q5_1": Mix("Q5_1", 9, "5 bits and a minimum, blocks of 32"),
    "q5_0": Mix("Q5_0", 8, "5 bits, blocks of 32", _guarded("Q5_1")),
    "q4_1": Mix("Q4_1", 3, "4 bits and a minimum, blocks of 32"),
    "q4_0": Mix("Q4_0", 2, "4 bits, blocks of 32: the fastest on CPUs", _guarded("Q4_1")),
}  # fmt: skip

# Of types in blocks of 256, for rows that 256 does not divide.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}

# Small or sensitive 2-D weights that stay as they are.
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "position_embd", "token_types.weight", "attn_rel_b.weight"),
    *("ssm_conv1d", "shortconv.conv.weight", "altup", "laurel", "per_layer_model_proj", "time_mix_"),
)
_LAYER = re.compile(r"blk\.(\d+)\.")
_FLOATS = ("F32", "F16", "BF16")

Override = tuple[re.Pattern[str], str]


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """A tensor's type; `wanted` is what the mix says where the tensor's shape does not allow it."""

    type: str
    wanted: str | None = None


def choose_types(
    shapes: Mapping[str, Sequence[int]],
    types: Mapping[str, str],
    mix: Mix,
    *,
    heads_per_kv: int = 1,
    has_imatrix: bool = False,
    overrides: Sequence[Override] = (),
) -> dict[str, TypeChoice]:
    """The type of each tensor of a model, by its GGUF name. `types` is what tensors have that are not quantized.

    Raises ConfigError for an override that no tensor which is quantized matches.
    """
    matrices = [name for name, shape in shapes.items() if is_quantizable(name, shape)]
    for pattern, _ in overrides:
        if not any(map(pattern.search, matrices)):
            example = min(matrices, default="none")
            raise ConfigError(f"--tensor-type: {pattern.pattern!r} matches no matrix of the model, such as {example}")
    num_layers = 1 + max((layer for name in shapes if (layer := layer_of(name)) is not None), default=0)
    num_experts = next((shape[0] for name, shape in shapes.items() if "_exps." in name), 0)
    tied = OUTPUT not in shapes
    choices = {}
    for name, shape in shapes.items():
        if not is_quantizable(name, shape):
            choices[name] = TypeChoice(types[name])
            continue
        place = TensorPlace(layer_of(name) or 0, num_layers, heads_per_kv, has_imatrix, num_experts)
        manual = next((type for pattern, type in overrides if pattern.search(name)), None)
        choices[name] = _fitting(manual or _wanted(name, shape[-1], mix, place, tied=tied), shape[-1])
    return choices


def layer_of(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def is_quantizable(name: str, shape: Sequence[int]) -> bool:
    return len(shape) >= 2 and name.endswith("weight") and not any(part in name for part in _KEPT)


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """`REGEX=TYPE` texts. ConfigError for what is not that. A comma inside of a regex has cut it in two: mended."""
    overrides: list[Override] = []
    pending = ""
    for text in texts:
        pattern, equals, type = (pending + text).rpartition("=")
        if not equals:
            pending += text + ","
            continue
        overrides.append((_compiled(pattern), _type_named(type)))
        pending = ""
    if pending:
        raise ConfigError(f"--tensor-type: {pending.rstrip(',')!r} is not REGEX=TYPE, such as ffn_down=q6_k")
    return overrides


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--tensor-type: {pattern!r} is not a regular expression: {error}") from None


def _type_named(text: str) -> str:
    type = text.strip().upper()
    written = [name for name in BLOCK_TYPES if name not in READ_ONLY]
    if type not in written:
        raise ConfigError(f"--tensor-type: no tensor is written as {text!r}; types are {', '.join(written).lower()}")
    return type


def _wanted(name: str, columns: int, mix: Mix, place: TensorPlace, *, tied: bool) -> str:
    if mix.base in _FLOATS:
        return mix.base
    if name == OUTPUT or (tied and name == EMBEDDING):
        return "Q8_0" if mix.base == "Q8_0" or columns % BLOCK_TYPES[mix.base].elements else "Q6_K"
    name = name.replace(_FUSED, _VALUES)
    if place.num_experts == _EIGHT and (_VALUES in name or _KEYS in name):
        return "Q8_0"
    if place.num_experts == _EIGHT and _ATTN_OUT in name:
        return "Q5_K" if any(mix is MIXES[name] for name in _Q5_OF_EIGHT) else mix.base
    return next((rule.type for rule in mix.rules if rule.part in name and rule.where(place)), mix.base)


def _fitting(type: str, columns: int) -> TypeChoice:
    """`type`, or what comes close to it in blocks that divide the row."""
    if columns % BLOCK_TYPES[type].elements == 0:
        return TypeChoice(type)
    fallback = FALLBACKS.get(type, "F16")
    return TypeChoice(fallback if columns % BLOCK_TYPES[fallback].elements == 0 else "F16", wanted=type)
