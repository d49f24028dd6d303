"""Reading Mamba-2 layers: their sizes and tensors, which all families that have them call alike.

One matrix gives the gate, then x, b and c together, then the steps' lengths. GGUF files hold -exp(A_log) as `ssm_a`, in
a column as `ssm_d`, and the norm's numbers in a row a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isinf

from pagoda.backends.specs import ScanSpec
from pagoda.errors import FormatError, UnsupportedError
from pagoda.models.family import ModelFile, negative_exp
from pagoda.models.layers import Attention, Norm
from pagoda.models.reader import DecoderReader, LayerKind, Sizes, read_norm_eps
from pagoda.models.recurrent import MAX_HEADS, MAX_SIZE, Mamba, gguf_heads
from pagoda.models.source import Settings
from pagoda.types import RawTensor


def mamba_tensors(block: str) -> dict[str, tuple[str, str]]:
    """Names of the tensors of a layer that Hugging Face calls `block`."""
    return {
        "mamba_input": ("blk.{i}.ssm_in", f"{block}.in_proj"),
        "mamba_conv": ("blk.{i}.ssm_conv1d", f"{block}.conv1d"),
        "mamba_dt_bias": ("blk.{i}.ssm_dt.bias", f"{block}.dt_bias"),
        "mamba_decay": ("blk.{i}.ssm_a", f"{block}.A_log"),
        "mamba_skip": ("blk.{i}.ssm_d", f"{block}.D"),
        "mamba_norm": ("blk.{i}.ssm_norm", f"{block}.norm"),
        "mamba_output": ("blk.{i}.ssm_out", f"{block}.out_proj"),
    }


def read_scan(file: ModelFile) -> ScanSpec:
    """The heads of Mamba layers. FormatError where they cannot share their groups evenly."""
    if file.is_gguf:
        heads, groups, state_dim, head_dim = gguf_heads(file)
    else:
        heads, groups = (file.integer(f"mamba_n_{of}", high=MAX_HEADS) for of in ("heads", "groups"))
        state_dim, head_dim = (file.integer(f"mamba_d_{of}", high=MAX_SIZE) for of in ("state", "head"))
        _check_steps(file)
    if heads % groups:
        raise FormatError(f"{heads} Mamba heads cannot share {groups} groups evenly")
    return ScanSpec(heads, head_dim, groups, state_dim)


def _check_steps(file: ModelFile) -> None:
    """UnsupportedError where steps are kept within limits."""
    key = "time_step_limit"
    if file.settings.get(key) is None:
        return
    low, high = file.settings.numbers(key, 2)
    if low > 0 or not isinf(high):
        raise UnsupportedError(f"{key} is [{low:g}, {high:g}]; only steps without limits are supported")


def mamba_head_dim(config: Settings) -> int:
    """config.json's `mamba_d_head`, or what "auto" stands for."""
    if config.get("mamba_d_head") != "auto":
        return config.integer("mamba_d_head", high=MAX_SIZE)
    inner = config.integer("mamba_expand", high=64) * config.integer("hidden_size", high=1 << 20)
    inner = config.integer("mamba_d_ssm", inner, high=MAX_HEADS * MAX_SIZE)
    return inner // config.integer("mamba_n_heads", high=MAX_HEADS)


MAMBA_DEFAULTS = {  # of config.json
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}


class MambaReader(DecoderReader):
    """Reads attention in layers that attend, and Mamba-2 in those that recur: by default the others."""

    def __init__(
        self,
        file: ModelFile,
        sizes: Sizes,
        attends: Sequence[bool],
        *,
        recurs: Sequence[bool] | None = None,
        attention_scale: float | None = None,
    ) -> None:
        super().__init__(file, sizes, attention_scale=attention_scale)
        self.attends = attends
        self.recurs = [not each for each in attends] if recurs is None else recurs
        if any(self.recurs):
            self.scan = read_scan(file)
            self.taps = file.integer("ssm.conv_kernel" if file.is_gguf else "mamba_d_conv", low=2, high=64)
            self.mamba_eps = read_norm_eps(file)
            self.conv_bias, self.mamba_bias = (
                not file.is_gguf and file.settings.flag(f"mamba_{of}_bias", of == "conv") for of in ("conv", "proj")
            )

    def attention(self, layer: int, kind: LayerKind) -> Attention | None:
        return super().attention(layer, kind) if self.attends[layer] else None

    def recurrent(self, layer: int) -> Mamba | None:
        return self.mamba(layer) if self.recurs[layer] else None

    def mamba(self, layer: int) -> Mamba:
        spec, hidden, file = self.scan, self.sizes.hidden_size, self.file
        rows = (spec.inner_size, spec.mixed_size, spec.num_heads)
        gate, xbc, dt = self.split(self.linear("mamba_input", sum(rows), hidden, layer, bias=self.mamba_bias), rows)
        has_bias = self.conv_bias or file.has_tensor("mamba_conv", layer, suffix="bias")
        decay = self._numbers("mamba_decay", layer)
        return Mamba(
            gate=gate,
            xbc=xbc,
            dt=dt,
            output=self.linear("mamba_output", hidden, spec.inner_size, layer, bias=self.mamba_bias),
            conv=self.conv("mamba_conv", spec.mixed_size, self.taps, layer),
            conv_bias=file.tensor("mamba_conv", (spec.mixed_size,), layer, suffix="bias") if has_bias else None,
            decay=decay if file.is_gguf else negative_exp(decay),
            dt_bias=file.tensor("mamba_dt_bias", (spec.num_heads,), layer, suffix=""),
            skip=self._numbers("mamba_skip", layer),
            norm=self.mamba_norm(layer),
            spec=spec,
        )

    def _numbers(self, role: str, layer: int) -> RawTensor:
        """One for each head."""
        heads = self.scan.num_heads
        shape = (heads, 1) if self.file.is_gguf else (heads,)
        return replace(self.file.tensor(role, shape, layer, suffix=""), shape=(heads,))

    def mamba_norm(self, layer: int) -> Norm | None:
        inner, groups = self.scan.inner_size, self.scan.num_groups
        shape = (groups, inner // groups) if self.file.is_gguf else (inner,)
        return Norm(replace(self.file.tensor("mamba_norm", shape, layer), shape=(inner,)), self.mamba_eps)
