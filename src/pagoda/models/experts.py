"""Reading mixtures of experts: how many there are, which layers have them, and their weights."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.backends.specs import Activation, ExpertsSpec
from pagoda.errors import FormatError
from pagoda.models.family import ModelFile
from pagoda.models.layers import Experts, Linear
from pagoda.models.source import Settings

MAX_EXPERTS = 1 << 12
COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")  # of config.json, the first that is there


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """count: experts a layer; used: of them a token; ffn_size: of each."""

    count: int
    used: int
    ffn_size: int
    normalize: bool  # see `ExpertsSpec`
    layers: frozenset[int]  # that have experts


def num_experts(config: Settings) -> int:
    """By config.json; 0 where there are none."""
    key = next((key for key in COUNT_KEYS if config.get(key) is not None), "")
    return config.integer(key, 0, low=0, high=MAX_EXPERTS)


def read_experts(file: ModelFile, num_layers: int, ffn_size: int) -> ExpertSizes | None:
    """None where the file has none. FormatError for settings that no model could have."""
    count = file.integer("expert_count", 0, low=0, high=MAX_EXPERTS) if file.is_gguf else num_experts(file.settings)
    if not count:
        return None
    used = file.integer("num_experts_used", high=MAX_EXPERTS)
    if used > count:
        raise FormatError(f"{file.key('num_experts_used')} is {used}, but there are {count} experts")
    if file.is_gguf:
        size = file.integer("expert_feed_forward_length", ffn_size, high=1 << 22)
        return ExpertSizes(count, used, size, file.family.gguf_norm_topk, frozenset(range(num_layers)))
    size = file.settings.integer("moe_intermediate_size", ffn_size, high=1 << 22)
    layers = frozenset(layer for layer in range(num_layers) if has_experts(file.settings, layer))
    return ExpertSizes(count, used, size, file.settings.flag("norm_topk_prob", True), layers)


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
    """The experts of one layer and their router."""
    n, f, e = sizes.count, sizes.ffn_size, hidden_size
    router = Linear(file.tensor("ffn_router", (n, e), layer))
    spec = ExpertsSpec(sizes.used, sizes.normalize, activation)
    suffix = "weight" if file.is_gguf else ""  # of stacks that hold gates and ups in one, as transformers 5 computes
    if file.has_tensor("ffn_gate_up_exps", layer, suffix=suffix):
        both = file.tensor("ffn_gate_up_exps", (n, 2 * f, e), layer, suffix=suffix)
        down = file.tensor("ffn_down_exps" if file.is_gguf else "ffn_down_stack", (n, e, f), layer, suffix=suffix)
        matrices = [both.matrix(expert) for expert in range(n)]
        gate, up = (tuple(matrix.part(i * f, (i + 1) * f) for matrix in matrices) for i in range(2))
        return Experts(router, gate, up, tuple(down.matrix(expert) for expert in range(n)), spec)
    return Experts(
        router=router,
        gate=file.expert_tensors("ffn_gate_exps", n, (f, e), layer),
        up=file.expert_tensors("ffn_up_exps", n, (f, e), layer),
        down=file.expert_tensors("ffn_down_exps", n, (e, f), layer),
        spec=spec,
    )
