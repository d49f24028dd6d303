"""What weight formats cost in quality, as published or measured: perplexity on one model beside that of 16 bits.

Small models lose more than large ones, and Llama 3, trained on more tokens, more than Llama 2. A figure is an order of
magnitude for another model, not a promise.
"""

from __future__ import annotations

from dataclasses import dataclass

SCOREBOARD = (
    "llama.cpp, LLaMA 3 8b scoreboard, https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/README.md"
)
AWQ = "AWQ, arXiv:2306.00978, table of INT4-g128 on Llama 2 7B: 5.47 in FP16, 5.69 by GPTQ, 5.60 by AWQ"
FP8 = '"Give Me BF16 or Give Me Death?", arXiv:2411.02355: no loss of accuracy with FP8 weights and activations'
NF4 = "QLoRA, arXiv:2305.14314, table 3: NF4 with double quantization tunes to the accuracy of 16 bits"
OURS = "measured by Pagoda on SmolLM2 135M, 20,400 tokens (docs/benchmarks.md)"


@dataclass(frozen=True, slots=True)
class FormatQuality:
    """`change` of perplexity, 0.03 being 3 % more; None where only a sentence was published."""

    change: float | None
    model: str
    note: str
    source: str


QUALITY: dict[str, FormatQuality] = {
    "fp16": FormatQuality(0.0, "Llama 3 8B", "the reference", SCOREBOARD),
    "bf16": FormatQuality(0.0, "Llama 3 8B", "the reference, as trained", SCOREBOARD),
    "fp8": FormatQuality(None, "Llama 3.1 8B to 405B", "no loss to be measured", FP8),
    "q8_0": FormatQuality(0.0004, "Llama 3 8B", "no loss to be felt", SCOREBOARD),
    "q6_k": FormatQuality(0.0035, "Llama 3 8B", "no loss to be felt", SCOREBOARD),
    "q5_k_m": FormatQuality(0.0091, "Llama 3 8B", "hardly a loss", SCOREBOARD),
    "awq": FormatQuality(0.024, "Llama 2 7B", "a small loss; calibrated", AWQ),
    "gptq": FormatQuality(0.040, "Llama 2 7B", "a small loss; calibrated", AWQ),
    "q4_k_m": FormatQuality(0.028, "Llama 3 8B", "a small loss; 2.4 % with an importance matrix", SCOREBOARD),
    "q4_0": FormatQuality(0.075, "Llama 3 8B", "a loss that can be felt", SCOREBOARD),
    "q3_k_m": FormatQuality(0.105, "Llama 3 8B", "a loss that can be felt", SCOREBOARD),
    "q2_k": FormatQuality(0.565, "Llama 3 8B", "a heavy loss; 39 % with an importance matrix", SCOREBOARD),
    "nf4-dq": FormatQuality(None, "LLaMA 7B to 65B", "as a base for adapters as good as 16 bits", NF4),
}
# Beside the file that all were made from (Q4_1 at 37.249); on a model so small that every bit shows.
MEASURED: dict[str, FormatQuality] = {
    "q8_0": FormatQuality(37.221 / 37.249 - 1, "SmolLM2 135M", "", OURS),
    "q4_k_m": FormatQuality(38.846 / 37.249 - 1, "SmolLM2 135M", "", OURS),
    "q4_0": FormatQuality(44.751 / 37.249 - 1, "SmolLM2 135M", "", OURS),
    "q2_k": FormatQuality(47.907 / 37.249 - 1, "SmolLM2 135M", "", OURS),
}
