"""Which quantized checkpoints Pagoda reads: a row a quantization method, by `quant_method` in config.json.

    gptq                 2, 3, 4, 8 bits; groups, act-order; zeros of either version   AutoGPTQ, GPTQModel, Pagoda
    awq                  4 bits, version gemm                                           AutoAWQ, GPTQModel, Pagoda
    compressed-tensors   pack-quantized 2 … 8 bits, int-quantized 8 bits, FP8, NVFP4    llm-compressor
    bitsandbytes         4 bits (NF4, FP4), double or plain; 8 bits                     transformers, Pagoda
    mxfp4                4 bits, stacks of experts                                      OpenAI's gpt-oss
    fp8, fbgemm_fp8      FP8 with scales for blocks, rows or all                        DeepSeek, Qwen, Llama
    modelopt             FP8, NVFP4                                                     NVIDIA's ModelOpt

A layer is quantized if its parts are there, so layers that a method left alone (`modules_to_not_convert`, `ignore`,
`lm_head`) need no list. What shapes alone can tell is checked here, before anything is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats import quant_floats
from pagoda.formats.nf4 import STATE, read_state, state_shape, unpack_nf4
from pagoda.formats.packed import Arrays, GroupedWeight, unpack_awq, unpack_compressed, unpack_gptq, unpack_int8
from pagoda.formats.quant_layout import Config, Layout, Parts, Stored, matrix_shape
from pagoda.formats.quantized import FLOAT_TYPES, as_array
from pagoda.types import RawTensor


def fold(tensors: Mapping[str, RawTensor], config: Config) -> dict[str, RawTensor]:
    """The tensors of a checkpoint with each quantized layer as one, by config.json's `quantization_config`.

    UnsupportedError for a method or variant that Pagoda does not read, FormatError for layers whose parts are missing
    or of impossible shapes.
    """
    method = config.get("quant_method", "gptq")
    if method not in METHODS:
        if all(tensor.type in FLOAT_TYPES for tensor in tensors.values()):
            return dict(tensors)  # says how it once was quantized
        raise UnsupportedError(
            f"quant_method {method!r} is not supported; supported: {', '.join(METHODS)}. "
            "Take the model in one of these, in GGUF, or unquantized"
        )
    folded = dict(tensors)
    for layout in METHODS[method](config):
        for name in [name for name in folded if name.endswith(layout.mark)]:
            _fold_layer(folded, layout, name.removesuffix(layout.mark))
    return folded


def _fold_layer(tensors: dict[str, RawTensor], layout: Layout, layer: str) -> None:
    suffixes = (layout.mark, *layout.needed, *layout.optional)
    parts = {suffix: tensors[layer + suffix] for suffix in suffixes if layer + suffix in tensors}
    missing = [suffix for suffix in layout.needed if suffix not in parts]
    if missing:
        raise FormatError(f"layer {layer!r} has {layout.mark[1:]}, but no {', '.join(missing)[1:]}")
    stored = layout.read(layer, parts)
    for suffix in (*suffixes, *layout.unused):
        tensors.pop(layer + suffix, None)
    name, data = f"{layer}{layout.weight}", parts[layout.codes].data
    tensors[name] = layout.tensor(name, stored.type, stored.shape, data, parts, stored.unpacker, layout.groups)


# GPTQ and AWQ


def _gptq(config: Config) -> list[Layout]:
    kind = config.get("checkpoint_format") or config.get("format") or "gptq"
    if config.get("is_marlin_format"):
        kind = "marlin"
    if kind in ("gemm", "gemv", "gemv_fast", "llm-awq"):
        return _awq({**config, "version": kind})
    if kind not in ("gptq", "gptq_v2") or config.get("pack_dtype", "int32") != "int32":
        raise UnsupportedError(
            f"a GPTQ checkpoint in the format {kind!r} packed in {config.get('pack_dtype', 'int32')} is not supported; "
            "save it in the format gptq or gptq_v2 with GPTQModel, or quantize the original: pagoda quantize --to gptq"
        )
    bits = _one_of(config, "bits", (2, 3, 4, 8))
    dynamic = bool(config.get("dynamic"))  # layers may have bits and groups of their own
    size = None if dynamic else _group_size(config)
    read = partial(_read_gptq, bits, size, 2 if kind == "gptq_v2" else 1, dynamic)
    return [Layout(".qweight", (".qzeros", ".scales"), (".g_idx",), ".qweight", read, ".g_idx")]


def _read_gptq(bits: int, size: int | None, version: int, dynamic: bool, layer: str, parts: Parts) -> Stored:
    words, rows = matrix_shape(layer, ".qweight", parts)
    if dynamic and ".g_idx" in parts:
        bits = words * 32 // max(parts[".g_idx"].shape[0], 1)
    columns = words * 32 // bits if bits else 0
    if columns * bits != words * 32 or (".g_idx" in parts and parts[".g_idx"].shape != (columns,)):
        raise FormatError(f"layer {layer!r} has {words} rows of qweight, which do not hold columns of {bits} bits")
    _check_groups(layer, ".scales", parts, columns, size, rows)
    unpack = partial(_unpack, unpack_gptq, {"bits": bits, "group_size": size, "version": version, "name": layer})
    return Stored((rows, columns), f"GPTQ-{bits}", unpack)


def _awq(config: Config) -> list[Layout]:
    version = str(config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm").lower()
    bits = config.get("bits", config.get("w_bit", 4))
    if version != "gemm" or bits != 4:
        raise UnsupportedError(
            f"an AWQ checkpoint of {bits} bits in version {version!r} is not supported; "
            "save it in 4 bits and version gemm with AutoAWQ, or quantize the original: pagoda quantize --to awq"
        )
    size = _group_size({"group_size": config.get("q_group_size"), **config})
    return [Layout(".qweight", (".scales",), (".qzeros",), ".qweight", partial(_read_awq, size))]


def _read_awq(size: int, layer: str, parts: Parts) -> Stored:
    columns, words = matrix_shape(layer, ".qweight", parts)
    _check_groups(layer, ".scales", parts, columns, size, words * 8)
    return Stored((words * 8, columns), "AWQ-4", partial(_unpack, unpack_awq, {"group_size": size, "name": layer}))


# compressed-tensors

_SCHEMES = "pack-quantized and int-quantized weights by group, channel or tensor, and FP8 and NVFP4 ones"
_FLOAT_FORMATS = ("float-quantized", "nvfp4-pack-quantized")


def _compressed(config: Config) -> list[Layout]:
    if config.get("transform_config") or (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise UnsupportedError("compressed-tensors checkpoints that are sparse or transformed are not supported")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise FormatError("quantization_config.config_groups is missing or no object of objects")
    for group in groups.values():
        _check_scheme(group, str(group.get("format") or config.get("format")))
    unused = (".input_scale", ".input_zero_point")  # activations are rounded more finely here than any scheme asks
    scheme = partial(_scheme_of, list(groups.values()))
    zeros = (".weight_zero_point", ".weight_g_idx")
    packed = Layout(
        ".weight_packed",
        (".weight_scale", ".weight_shape"),
        zeros,
        ".weight_packed",
        partial(_read_compressed, scheme),
        ".weight_g_idx",
        unused,
    )
    plain = Layout(
        ".weight_scale",
        (".weight",),
        zeros[:1],
        ".weight",
        partial(_read_int8, scheme),
        unused=(*unused, ".weight_shape"),
    )
    formats = {str(group.get("format") or config.get("format")) for group in groups.values()}
    blocks = [group["weights"].get("block_structure") for group in groups.values()]
    layouts = {
        "nvfp4-pack-quantized": quant_floats.nvfp4_layout(".weight_packed", ".weight_global_scale", divided=True),
        "pack-quantized": packed,
        "float-quantized": quant_floats.fp8_layout(
            ".weight_scale", next((quant_floats.block_size(block) for block in blocks if block), None)
        ),
    }
    return [layouts.get(format, plain) for format in sorted(formats, key=[*layouts, *formats].index)]


def _check_scheme(group: Config, format: str) -> None:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    bits = weights.get("num_bits")
    fits = {"pack-quantized": range(2, 9), "int-quantized": (8,), "naive-quantized": (8,)}.get(format, ())
    kinds = (weights.get("type", "int"), inputs.get("type", "int"))
    strategy = weights.get("strategy") or "tensor"
    if (
        format in _FLOAT_FORMATS
        and weights.get("type") == "float"
        and bits == (8 if format == "float-quantized" else 4)
    ):
        return
    if bits not in fits or kinds != ("int", "int") or strategy not in ("group", "channel", "tensor"):
        raise UnsupportedError(
            f"compressed-tensors weights of {bits} bits ({kinds[0]}, {strategy}) in the format {format!r} are not "
            f"supported; {_SCHEMES} are. Quantize the original again, such as with pagoda quantize --to gptq"
        )


def _scheme_of(groups: list[Config], layer: str) -> tuple[int, int | None]:
    """Bits and group size of a layer: of the config group that targets it by name, else by class."""
    named = [group for group in groups if any(_targets(target, layer) for target in group.get("targets", ()))]
    weights = (named or groups)[0]["weights"]
    strategy, size = weights.get("strategy") or "tensor", weights.get("group_size")
    return int(weights["num_bits"]), int(size) if strategy == "group" and isinstance(size, int) else -1


def _targets(target: str, layer: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], layer) is not None
    return layer == target


def _read_compressed(scheme: Callable[[str], tuple[int, int | None]], layer: str, parts: Parts) -> Stored:
    bits, size = scheme(layer)
    rows, words = matrix_shape(layer, ".weight_packed", parts)
    shape = [int(n) for n in as_array(parts[".weight_shape"]).reshape(-1)]
    if len(shape) != 2 or shape[0] != rows or shape[1] < 1 or -(-shape[1] * bits // 32) != words:
        raise FormatError(f"layer {layer!r} has {rows} x {words} words, which do not hold {shape} of {bits} bits")
    _check_groups(layer, ".weight_scale", parts, shape[1], size)
    unpack = partial(_unpack, unpack_compressed, {"bits": bits, "group_size": size, "name": layer})
    return Stored((rows, shape[1]), f"W{bits}", unpack)


def _read_int8(scheme: Callable[[str], tuple[int, int | None]], layer: str, parts: Parts) -> Stored:
    _, size = scheme(layer)
    rows, columns = matrix_shape(layer, ".weight", parts)
    if parts[".weight"].type != "I8":
        raise FormatError(f"layer {layer!r} has scales, but a weight of type {parts['.weight'].type}, not I8")
    _check_groups(layer, ".weight_scale", parts, columns, size)
    return Stored((rows, columns), "INT8", partial(_unpack, unpack_int8, {"group_size": size, "name": layer}))


# bitsandbytes

_NF4_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", f".{STATE}nf4", f".{STATE}fp4")


def _bitsandbytes(config: Config) -> list[Layout]:
    optional = tuple(f".weight{part}" for part in _NF4_PARTS[2:])
    four = Layout(".weight.absmax", (".weight", ".weight.quant_map"), optional, ".weight", _read_nf4)
    eight = Layout(".SCB", (".weight",), (), ".weight", _read_llm_int8, unused=(".weight_format",))
    return [four, eight]


def _read_nf4(layer: str, parts: Parts) -> Stored:
    state = read_state(_nf4_arrays({k: as_array(part) for k, part in parts.items() if STATE in k}), layer)
    shape = state_shape(state, layer)
    if parts[".weight"].num_bytes != (shape[0] * shape[1] + 1) // 2 or parts[".weight"].type != "U8":
        raise FormatError(f"layer {layer!r} of shape {shape} has {parts['.weight'].num_bytes} bytes of codes")
    return Stored(shape, str(state.get("quant_type", "nf4")).upper(), lambda p: unpack_nf4(_nf4_arrays(p), name=layer))


def _nf4_arrays(parts: Arrays) -> Arrays:
    return {suffix.removeprefix(".weight"): array for suffix, array in parts.items()}


def _read_llm_int8(layer: str, parts: Parts) -> Stored:
    shape = matrix_shape(layer, ".weight", parts)
    if parts[".weight"].type != "I8" or parts[".SCB"].shape != (shape[0],):
        raise FormatError(
            f"layer {layer!r} has weights {shape} of {parts['.weight'].type} and {parts['.SCB'].shape} scales"
        )
    return Stored(shape, "INT8", partial(_unpack_llm_int8, layer))


def _unpack_llm_int8(layer: str, parts: Arrays) -> GroupedWeight:
    """Each row's largest magnitude, SCB, stands for 127 (Dettmers et al., LLM.int8(), 2022)."""
    scales = parts[".SCB"].astype("f4") / 127
    return unpack_int8({"weight": parts[".weight"], "weight_scale": scales}, group_size=-1, name=layer)


METHODS: dict[str, Callable[[Config], list[Layout]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": quant_floats.mxfp4,
    "fp8": quant_floats.fp8,
    "fbgemm_fp8": quant_floats.fp8,
    "modelopt": quant_floats.modelopt,
    "modelopt_fp4": quant_floats.modelopt,
}


# What the rows share


def _unpack(function: Callable[..., GroupedWeight], settings: dict[str, Any], parts: Arrays) -> GroupedWeight:
    return function({suffix[1:]: array for suffix, array in parts.items()}, **settings)


def _one_of(config: Config, key: str, allowed: tuple[int, ...]) -> int:
    value = config.get(key)
    if value not in allowed:
        raise UnsupportedError(f"quantization_config.{key} is {value!r}; supported: {', '.join(map(str, allowed))}")
    return int(value)


def _group_size(config: Config) -> int:
    size = config.get("group_size")
    if type(size) is not int or not (size == -1 or 0 < size <= 1 << 20):
        raise FormatError(f"quantization_config.group_size is {size!r}, must be a size, or -1 for whole rows")
    return size


def _check_groups(
    layer: str, suffix: str, parts: Parts, columns: int, size: int | None, rows: int | None = None
) -> None:
    """Scales [G, rows], or [.., G] where `rows` is None, must be as many groups as the size makes."""
    shape = parts[suffix].shape
    found = shape[0] if rows is not None else (shape[1] if len(shape) > 1 else 1)
    expected = found if size is None else (-(-columns // size) if size > 0 else 1)
    if found != expected or (rows is not None and shape != (found, rows)):
        of = f"groups of {size}" if size and size > 0 else "one group a row"
        raise FormatError(
            f"layer {layer!r} has {suffix[1:]} of shape {shape}, "
            f"but {of} make {expected} groups of its {columns} columns"
        )
