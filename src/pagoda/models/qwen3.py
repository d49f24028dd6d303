"""Qwen3, dense: Qwen2 without its biases, with an RMS norm over each query and key head before they are turned."""

from __future__ import annotations

from pagoda.models import qwen2
from pagoda.models.family import Family

FAMILY = Family(
    name="qwen3",
    gguf="qwen3",
    hf_class="Qwen3ForCausalLM",
    build=qwen2.build,
    usual_context=32_768,
    qk_norm=True,
    windows=False,
)
