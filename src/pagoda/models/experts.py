"""Reading mixtures of experts: how many there are, which layers have them, and their weights.

Experts of every layer, of layers from a first one on, or of some; routed by softmax or sigmoid, by scores that are
corrected or not; alone or beside a shared one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pagoda.backends.specs import Activation, ExpertGroups, ExpertsSpec, Scoring
from pagoda.errors import FormatError, UnsupportedError
from pagoda.formats.quantized import FLOAT_TYPES
from pagoda.models.family import ModelFile
from pagoda.models.layers import Experts, FeedForward, Linear
from pagoda.models.source import Settings
from pagoda.types import RawTensor

MAX_EXPERTS = 1 << 12
COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")  # of config.json, the first that is there
_EXPERT = re.compile(r"_exps\b|\.experts\.")
GROUP_METHODS = {"group_limited_greedy": 1, "noaux_tc": 2}  # config.json's topk_method: see `ExpertGroups.best`
SCORINGS: dict[int, Scoring] = {1: "softmax", 2: "sigmoid"}  # by GGUF's numbers; 0: it does not say


def shared_expert(block: str, gate: str = "") -> dict[str, tuple[str, str]]:
    """The tensors of a shared expert that Hugging Face folders hold as `block` of a layer, and its own gate, if any."""
    layer = "model.layers.{i}"
    parts = {
        f"ffn_{of}_shexp": (f"blk.{{i}}.ffn_{of}_shexp", f"{layer}.{block}.{of}_proj") for of in ("gate", "up", "down")
    }
    return parts | ({"ffn_gate_inp_shexp": ("blk.{i}.ffn_gate_inp_shexp", f"{layer}.{gate}")} if gate else {})


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """count: experts a layer; used: of them a token; ffn_size: of each."""

    count: int
    used: int
    ffn_size: int
    normalize: bool  # see `ExpertsSpec`
    layers: frozenset[int]  # that have experts
    scoring: Scoring = "softmax"
    scale: float = 1.0
    groups: ExpertGroups | None = None


def is_expert(tensor: str) -> bool:
    """Whether the tensor of this name holds experts, of which a token uses only those that the router picks."""
    return _EXPERT.search(tensor) is not None


def used_share(file: ModelFile) -> float:
    """Which share of a layer's experts a token uses; 1 where there are none."""
    count, used = _counts(file)
    return used / count if count else 1.0


def _counts(file: ModelFile) -> tuple[int, int]:
    """Experts of a layer, and how many of them a token uses; both 0 where there are none. FormatError for more."""
    count = file.integer("expert_count", 0, low=0, high=MAX_EXPERTS) if file.is_gguf else num_experts(file.settings)
    used = file.integer("num_experts_used", high=MAX_EXPERTS) if count else 0
    if used > count:
        raise FormatError(f"{file.key('num_experts_used')} is {used}, but there are {count} experts")
    return count, used


def num_experts(config: Settings) -> int:
    """By config.json; 0 where there are none."""
    key = next((key for key in COUNT_KEYS if config.get(key) is not None), "")
    return config.integer(key, 0, low=0, high=MAX_EXPERTS)


def read_experts(file: ModelFile, num_layers: int, ffn_size: int) -> ExpertSizes | None:
    """None where the file has none. FormatError for settings that no model could have."""
    count, used = _counts(file)
    if not count:
        return None
    scoring = _read_scoring(file)
    groups = _read_groups(file, count, used, scoring)
    scale = file.optional_number("expert_weights_scale" if file.is_gguf else "routed_scaling_factor") or 1.0
    if file.is_gguf:
        size = file.integer("expert_feed_forward_length", ffn_size, high=1 << 22)
        first = file.integer("leading_dense_block_count", 0, low=0, high=num_layers)
        normalize = file.settings.flag(file.key("expert_weights_norm"), file.family.gguf_norm_topk)
        layers = frozenset(range(first, num_layers))
        return ExpertSizes(count, used, size, normalize, layers, scoring, scale, groups)
    size = file.settings.integer("moe_intermediate_size", ffn_size, high=1 << 22)
    layers = frozenset(layer for layer in range(num_layers) if has_experts(file.settings, layer))
    normalize = file.settings.flag("norm_topk_prob", True)
    return ExpertSizes(count, used, size, normalize, layers, scoring, scale, groups)


def _read_groups(file: ModelFile, count: int, used: int, scoring: Scoring) -> ExpertGroups | None:
    """None where experts are picked from all. GGUF does not say what a group's score is: what the family's does."""
    groups = file.integer("expert_group_count" if file.is_gguf else "n_group", 1, low=0, high=count)
    if groups <= 1:
        return None
    method = "noaux_tc" if scoring == "sigmoid" else file.family.group_method
    if not file.is_gguf and (stated := file.settings.text("topk_method", method)) != method:
        if stated == "greedy":  # which pays groups no heed
            return None
        raise UnsupportedError(f"topk_method {stated!r} of {groups} groups of experts, here {method!r} is supported")
    key = file.key("expert_group_used_count" if file.is_gguf else "topk_group")
    allowed = ExpertGroups(groups, file.settings.integer(key, low=1, high=groups), GROUP_METHODS[method])
    size, rest = divmod(count, groups)
    if rest or size < allowed.best or used > size * allowed.num_used:
        raise FormatError(f"{key} {allowed.num_used}: {used} of {count} experts cannot be picked from {groups} groups")
    return allowed


def _read_scoring(file: ModelFile) -> Scoring:
    if not file.is_gguf:
        return file.family.scoring
    number = file.integer("expert_gating_func", 0, low=0, high=255)
    if number and number not in SCORINGS:
        raise UnsupportedError(f"{file.key('expert_gating_func')} is {number}, which scores experts in an unknown way")
    return SCORINGS.get(number, file.family.scoring)


def has_experts(config: Settings, layer: int) -> bool:
    """Whether config.json, of a model with experts, gives some to this layer."""
    if layer < config.integer("first_k_dense_replace", 0, low=0, high=MAX_EXPERTS):
        return False
    if config.is_sequence("mlp_only_layers") and layer in config.get("mlp_only_layers"):
        return False
    step = config.integer(
        "decoder_sparse_step", config.integer("moe_layer_freq", 1, high=MAX_EXPERTS), high=MAX_EXPERTS
    )
    return (layer + 1) % step == 0


def read_layer(file: ModelFile, layer: int, sizes: ExpertSizes, hidden_size: int, activation: Activation) -> Experts:
    """The experts of one layer and their router, and the one that works for every token."""
    routed = _read_routed(file, layer, sizes, hidden_size, activation)
    roles = [f"ffn_{of}_shexp" for of in ("gate", "up", "down")]
    if not file.has_role(roles[0]) or not any(file.has_tensor(role, layer) for role in roles):
        return routed
    size = file.tensor("ffn_up_shexp", (None, hidden_size), layer).shape[0]
    gate, up = (Linear(file.tensor(f"ffn_{of}_shexp", (size, hidden_size), layer)) for of in ("gate", "up"))
    down = Linear(file.tensor("ffn_down_shexp", (hidden_size, size), layer))
    shared = FeedForward(gate, up, down, activation)
    if "ffn_gate_inp_shexp" not in file.family.tensors:
        return replace(routed, shared=shared)
    shape = (hidden_size,) if file.is_gguf else (1, hidden_size)
    counts = replace(file.tensor("ffn_gate_inp_shexp", shape, layer), shape=(1, hidden_size))
    return replace(routed, shared=shared, shared_gate=Linear(counts))


def _read_routed(file: ModelFile, layer: int, sizes: ExpertSizes, hidden_size: int, activation: Activation) -> Experts:
    n, f, e = sizes.count, sizes.ffn_size, hidden_size
    router = Linear(file.tensor("ffn_router", (n, e), layer))
    spec = ExpertsSpec(sizes.used, sizes.normalize, activation, sizes.scoring, sizes.scale, sizes.groups)
    corrections = None
    corrected = "expert_corrections" in file.family.tensors and sizes.scoring == "sigmoid"
    if corrected and (file.is_gguf or file.settings.flag("use_expert_bias", True)):
        corrections = file.tensor("expert_corrections", (n,), layer, suffix="bias" if file.is_gguf else "")
    suffix = "weight" if file.is_gguf else ""  # of stacks that hold gates and ups in one, as transformers 5 computes
    if file.has_tensor("ffn_gate_up_exps", layer, suffix=suffix):
        both = _stack(file, "ffn_gate_up_exps", (n, 2 * f, e), layer)
        gate, up = (tuple(matrix.part(i * f, (i + 1) * f) for matrix in both) for i in range(2))
        down = _stack(file, "ffn_down_exps" if file.is_gguf else "ffn_down_stack", (n, e, f), layer)
        return Experts(router, gate, up, tuple(down), spec, corrections=corrections)
    return Experts(
        router=router,
        gate=file.expert_tensors("ffn_gate_exps", n, (f, e), layer),
        up=file.expert_tensors("ffn_up_exps", n, (f, e), layer),
        down=file.expert_tensors("ffn_down_exps", n, (e, f), layer),
        spec=spec,
        corrections=corrections,
    )


def _stack(file: ModelFile, role: str, shape: tuple[int, int, int], layer: int) -> list[RawTensor]:
    """The matrices of a stack of so many, (out, in) each; where the family may have them transposed, shapes tell."""
    suffix, (count, rows, columns) = "weight" if file.is_gguf else "", shape
    found = file.tensor(role, (count, None, None), layer, suffix=suffix).shape
    if file.is_gguf or not file.family.stacks_transposed or found == shape:
        stack = file.tensor(role, shape, layer, suffix=suffix)
        return [stack.matrix(expert) for expert in range(count)]
    stack = file.tensor(role, (count, columns, rows), layer, suffix=suffix)
    if stack.type not in FLOAT_TYPES:
        raise UnsupportedError(f"tensor {stack.name!r} has type {stack.type}; stacks that lie so must be floats")
    return [stack.matrix(expert).transposed() for expert in range(count)]
