"""The text models of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: Qwen2 and Qwen3 themselves. Their rotary embedding has a part
for each of time, height and width, which text moves alike.
"""

from __future__ import annotations

from dataclasses import replace

from pagoda.models import qwen2, qwen3, qwen3_moe

LEFT_OUT = dict.fromkeys(("visual.", "model.visual."), "the vision model")

SECOND = replace(
    qwen2.FAMILY,
    name="qwen2_vl",
    gguf="qwen2vl",
    hf_class="Qwen2VLForConditionalGeneration",
    model_type="qwen2_vl_text",
    not_covered="conversion; training",
    compared=(),
    is_converted=False,
    is_trained=False,
    left_out=LEFT_OUT,
)

SECOND_AND_A_HALF = replace(
    SECOND, name="qwen2_5_vl", hf_class="Qwen2_5_VLForConditionalGeneration", model_type="qwen2_5_vl_text"
)

THIRD = replace(
    qwen3.FAMILY,
    name="qwen3_vl",
    gguf="qwen3vl",
    hf_class="Qwen3VLForConditionalGeneration",
    model_type="qwen3_vl_text",
    not_covered=SECOND.not_covered,
    compared=("llama.cpp 0.3.36: files of its converter",),
    is_converted=False,
    is_trained=False,
    left_out=LEFT_OUT,
)

MIXTURE = replace(
    qwen3_moe.FAMILY,
    name="qwen3_vl_moe",
    gguf="qwen3vlmoe",
    hf_class="Qwen3VLMoeForConditionalGeneration",
    model_type="qwen3_vl_moe_text",
    not_covered=SECOND.not_covered,
    defaults={**qwen3_moe.FAMILY.defaults, "norm_topk_prob": True},
    compared=(),
    is_converted=False,
    is_trained=False,
    left_out=LEFT_OUT,
    stacks_transposed=True,
)
