"""Where an adapter's modules are in a model: names → linears, and rows in the order of the model's file.

A module of the adapter is found by its role in the family's table of names, so an adapter from either kind of file goes
onto a model from either kind. GGUF's Llama has the rows of q and k reordered; they are brought into the model's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagoda.adapters.adapter import Adapter, Delta
from pagoda.backends.specs import AdapterWeights, LoraDelta
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.quantized import as_floats
from pagoda.models.family import Family
from pagoda.models.latent import LatentAttention
from pagoda.models.layers import Attention, Block, Decoder, Experts, FeedForward, Linear, Recurrent
from pagoda.models.names import GGUF, HUGGING_FACE
from pagoda.models.recurrent import DeltaNet, Mamba, ShortConv
from pagoda.types import FloatArray

ROWS_AT_ONCE = 1024  # of a weight whose rows' lengths are computed
MERGE = "merge it into the model: pagoda merge"
# Modules of models that wrap the decoder in another, with its own name in between.
MULTIPLIES = ("attn_", "ffn_", "delta_", "mamba_", "conv_")  # roles of linears begin so
WRAPPINGS = ("language_model.", "text_model.")


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter goes onto, and how its file spells names."""

    decoder: Decoder
    family: Family
    is_gguf: bool
    architecture: str

    def find(self, module: str, is_gguf: bool) -> tuple[str, int | None]:
        """(role, layer) of a module by its name in a file of that kind. FormatError where the family has none."""
        column = GGUF if is_gguf else HUGGING_FACE
        for role, spellings in self.family.tensors.items():
            spelled = spellings[column]
            if not spelled or "{e}" in spelled:
                continue
            pattern = re.escape(spelled).replace(r"\{i\}", r"(?P<layer>\d{1,5})")
            match = re.fullmatch(pattern, module)
            if match is not None:
                return role, int(match["layer"]) if "{i}" in spelled else None
        raise FormatError(
            f"the adapter changes {module!r}, which this {self.family.name} model does not have: it was made for "
            "another base model"
        )

    def block(self, module: str, layer: int) -> Block:
        if layer >= self.decoder.num_layers:
            raise FormatError(
                f"the adapter changes {module!r}, but this model has {self.decoder.num_layers} layers: it was made for "
                "another base model"
            )
        return self.decoder.blocks[layer]

    def linears(self, module: str, role: str, layer: int | None) -> tuple[Linear, ...]:
        """The linears whose rows, one after the other, are the module's. UnsupportedError: it is none."""
        if layer is None or not role.startswith(MULTIPLIES) or role.endswith("norm"):
            raise UnsupportedError(f"adapters of {module!r} cannot be served; {MERGE}")
        block = self.block(module, layer)
        found = {**_of_attention(block.attention), **_of_recurrent(block.recurrent), **self._of_ffn(block.ffn)}
        if role not in found:
            raise UnsupportedError(f"adapters of {module!r}, of an expert or packed, cannot be served")
        return found[role]

    def _of_ffn(self, ffn: FeedForward | Experts | None) -> dict[str, tuple[Linear, ...]]:
        """By role. Folders may hold a gate and its up in one matrix, and name dense layers after the shared expert."""
        if ffn is None:
            return {}
        if isinstance(ffn, Experts):
            return {"ffn_router": (ffn.router,)}
        found: dict[str, tuple[Linear, ...]] = {f"ffn_{name}": (linear,) for name, linear in ffn.linears.items()}
        if ffn.gate is not None and (self.family.fused or self.family.fused_ffn):
            found["ffn_up"] = (ffn.gate, ffn.up)
        if ffn.gate is not None and self.names_after_shared:
            found |= {"ffn_up_shexp": (ffn.gate, ffn.up), "ffn_down_shexp": (ffn.down,)}
        return found

    @property
    def names_after_shared(self) -> bool:
        return not self.family.tensors["ffn_up"][HUGGING_FACE]

    def rows(self, role: str, linears: tuple[Linear, ...]) -> list[npt.NDArray[np.intp]]:
        """Which rows of the module are each linear's, in its order.

        The next ones, but of each head its query's, then its gate's; of latent attention a query's turned part first.
        """
        sizes = [linear.weight.shape[0] for linear in linears]
        rows = np.arange(sum(sizes))
        if role == "attn_q":
            attention = self.decoder.attention
            if isinstance(attention, LatentAttention):
                return [attention.turned_first(rows)]
            heads = rows.reshape(attention.spec.num_heads, len(linears), -1)
            return [heads[:, i].reshape(-1) for i in range(len(linears))]
        return np.split(rows, np.cumsum(sizes)[:-1])

    def reorder(self, role: str, from_gguf: bool) -> Callable[[FloatArray], FloatArray]:
        """Brings rows [out, …] of a module from the order of a file of that kind into this model's."""
        spec = self.decoder.attention.spec
        heads = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads}.get(role)
        if heads is None or not self.family.interleaved or from_gguf == self.is_gguf:
            return lambda rows: rows
        return to_half_split(heads) if from_gguf else to_interleaved(heads)


def _of_attention(attention: Attention | None) -> dict[str, tuple[Linear, ...]]:
    """By role."""
    if attention is None:
        return {}
    roles = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    named = attention.linears
    found: dict[str, tuple[Linear, ...]] = {roles[name]: (linear,) for name, linear in named.items() if name in roles}
    found["attn_qkv"] = tuple(named[name] for name in ("q", "k", "v") if name in named)
    if attention.gate is not None:
        found["attn_q"] = (attention.q, attention.gate)
    return found


def _of_recurrent(recurrent: Recurrent | None) -> dict[str, tuple[Linear, ...]]:
    """By role."""
    match recurrent:
        case DeltaNet(qkv, gate, alpha, beta, output):
            named = {"gate": gate, "alpha": alpha, "beta": beta, "output": output}
            return {"attn_qkv": (qkv,), **{f"delta_{name}": (linear,) for name, linear in named.items()}}
        case ShortConv(b, c, x, output):
            return {"conv_input": (b, c, x), "conv_output": (output,)}
        case Mamba(gate, xbc, dt, output):
            return {"mamba_input": (gate, xbc, dt), "mamba_output": (output,)}
    return {}


def to_interleaved(heads: int) -> Callable[[FloatArray], FloatArray]:
    """Rows of each head from pairs half a head apart to pairs side by side."""
    return lambda rows: np.ascontiguousarray(
        rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    )


def to_half_split(heads: int) -> Callable[[FloatArray], FloatArray]:
    """And back."""
    return lambda rows: np.ascontiguousarray(
        rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    )


def place(adapter: Adapter, base: Base) -> AdapterWeights:
    """What the adapter adds to each linear of the model.

    FormatError where it was made for another model; UnsupportedError names what cannot be served unmerged.
    """
    if adapter.architecture is not None and adapter.architecture != base.architecture:
        raise FormatError(
            f"the adapter was made for {adapter.architecture!r}, but the model is {base.architecture!r}",
            path=str(adapter.path),
        )
    weights: dict[str, LoraDelta] = {}
    biases = {name.removesuffix(".bias"): values for name, values in adapter.whole.items() if name.endswith(".bias")}
    for name in adapter.whole:
        if not name.endswith(".bias"):
            raise UnsupportedError(f"{adapter.path}: {name!r} was trained whole, which cannot be served apart; {MERGE}")
    for module in {**adapter.deltas, **biases}:
        for linear, delta in _placed(module, adapter.deltas.get(module), biases.get(module), adapter, base):
            if linear.weight.name in weights:
                raise FormatError(f"the adapter changes {module!r} twice", path=str(adapter.path))
            weights[linear.weight.name] = delta
    return weights


def _check_kinds(base: Base, role: str, from_gguf: bool, to_gguf: bool) -> None:
    """UnsupportedError where the two kinds of file hold other matrices, or heads of delta nets in another order."""
    if from_gguf == to_gguf:
        return
    if base.family.multiplied:
        raise UnsupportedError(
            f"GGUF files of {base.family.name} hold weights that are multiplied already: adapters for such a file and "
            "for a Hugging Face folder are not the same"
        )
    if base.family.tiled_heads and (role == "attn_qkv" or role.startswith("delta_")):
        raise UnsupportedError(
            f"GGUF files of {base.family.name} have the heads of recurrent layers in another order: adapters of these "
            "layers for such a file and for a Hugging Face folder are not the same"
        )


def _placed(
    module: str, delta: Delta | None, bias: FloatArray | None, adapter: Adapter, base: Base
) -> Iterator[tuple[Linear, LoraDelta]]:
    """The linears of one module, each with its rows of what the adapter adds."""
    role, layer = base.find(unwrapped(module), adapter.is_gguf)
    _check_kinds(base, role, adapter.is_gguf, base.is_gguf)
    linears = base.linears(module, role, layer)
    if delta is not None and delta.is_embedding:
        raise UnsupportedError(f"{adapter.path}: {module!r} is an embedding, which cannot be served apart; {MERGE}")
    rows, columns = sum(linear.weight.shape[0] for linear in linears), linears[0].weight.shape[1]
    _check_shapes(module, delta, bias, (rows, columns), adapter)
    reorder = base.reorder(role, adapter.is_gguf)
    for linear, part in zip(linears, base.rows(role, linears), strict=True):
        a = np.zeros((0, columns), np.float32) if delta is None else delta.a
        b = np.zeros((rows, 0), np.float32) if delta is None else delta.b * np.float32(delta.scale)
        added = LoraDelta(a, reorder(b)[part], _bias(delta, bias, linear, reorder, part))
        magnitude = None if delta is None else delta.magnitude
        yield linear, added if magnitude is None else _scaled(added, reorder(magnitude)[part], linear)


def _check_shapes(
    module: str, delta: Delta | None, bias: FloatArray | None, shape: tuple[int, int], adapter: Adapter
) -> None:
    found = None if delta is None else (delta.b.shape[0], delta.a.shape[1])
    if found not in (None, shape) or (bias is not None and bias.shape != shape[:1]):
        raise FormatError(
            f"{module} is for a matrix of {found}, but the model's is {shape}: the adapter was "
            "made for another base model",
            path=str(adapter.path),
        )


def _scaled(delta: LoraDelta, magnitude: FloatArray, linear: Linear) -> LoraDelta:
    """The delta with rows of W + B A at the lengths that DoRA's magnitudes say (arXiv 2402.09353).

    The linear's own bias is not scaled with them, so what would be is added back.
    """
    weight, length = as_floats(linear.weight), np.empty(len(magnitude), np.float64)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        length[rows] = np.sqrt(np.square(weight[rows] + delta.b[rows] @ delta.a, dtype=np.float64).sum(-1))
    scale = (magnitude / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
    own = None if linear.bias is None else as_floats(linear.bias)
    bias = delta.bias if own is None else (1 - scale) * own + (0 if delta.bias is None else delta.bias)
    return LoraDelta(delta.a, scale[:, None] * delta.b, bias, scale)


def _bias(
    delta: Delta | None,
    bias: FloatArray | None,
    linear: Linear,
    reorder: Callable[[FloatArray], FloatArray],
    part: npt.NDArray[np.intp],
) -> FloatArray | None:
    """What is added to the linear's bias: the trained one less its own, and `lora_bias`."""
    total: FloatArray | None = None
    if bias is not None:
        own = linear.bias
        total = reorder(bias)[part]
        if own is not None:
            total = total - as_floats(own)
    if delta is not None and delta.bias is not None:
        scaled = reorder(delta.bias * np.float32(delta.scale))[part]
        total = scaled if total is None else total + scaled
    return total


def unwrapped(module: str) -> str:
    """The module's name in the decoder itself."""
    for wrapping in WRAPPINGS:
        module = module.replace(wrapping, "", 1)
    return module


def base_names(deltas: Mapping[str, Delta], base: Base, *, from_gguf: bool, to_gguf: bool) -> dict[str, Delta]:
    """The deltas under the names, and in the order of rows, of the other kind of file. UnsupportedError for what that
    cannot say."""
    renamed: dict[str, Delta] = {}
    for module, delta in deltas.items():
        role, layer = base.find(unwrapped(module), from_gguf)
        _check_kinds(base, role, from_gguf, to_gguf)
        spelled = base.family.tensors[role][GGUF if to_gguf else HUGGING_FACE]
        joined = role == "ffn_up_shexp" and base.names_after_shared  # with its gate, in folders alone
        if not spelled or joined or delta.magnitude is not None or delta.bias is not None or delta.is_embedding:
            raise UnsupportedError(f"the other format cannot say what the adapter changes of {module!r}")
        target = Base(base.decoder, base.family, to_gguf, base.architecture)
        b = target.reorder(role, from_gguf)(delta.b)
        renamed[spelled.format(i=layer)] = Delta(delta.a, b, delta.scale)
    return renamed
