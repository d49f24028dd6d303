"""The planner against runs that others have published: those its shares were read off, and those that it never saw."""

import pytest

from pagoda.plan.planner import make_plan
from pagoda.plan.settings import PlanSettings
from pagoda.plan.target import Target

LLAMA_CPP = "XiongjieDai/GPU-Benchmarks-on-LLM-Inference, May 2024"
TRT = "TensorRT-LLM 0.9, docs/source/performance.md"

# model, device, format, devices, tokens of context, ms a token
CALIBRATED = [
    ("qwen2.5-0.5b", "h100-pcie", "bf16", 1, 128, 1.677),  # vllm-project/vllm#53060
    ("qwen3-1.7b", "h100-pcie", "bf16", 1, 128, 3.199),
    ("llama-3-8b", "a100-40gb", "bf16", 1, 1088, 1000 / 75),  # johnmusgrave.com
    ("llama-3-8b", "rtx3090", "fp16", 1, 512, 1000 / 46.51),  # LLAMA_CPP
    ("llama-3-8b", "rtx4090", "fp16", 1, 512, 1000 / 54.34),
    ("llama-3-8b", "rtxa6000", "fp16", 1, 512, 1000 / 40.25),
    ("llama-3-8b", "l40s", "fp16", 1, 512, 1000 / 43.42),
    ("llama-3-8b", "apple-m1-max", "fp16", 1, 512, 1000 / 18.43),
    ("llama-3-8b", "apple-m2-ultra", "fp16", 1, 512, 1000 / 36.25),
    ("llama-3-8b", "apple-m3-max", "fp16", 1, 512, 1000 / 22.39),
    ("llama-3-8b", "apple-m4", "q4_k_m", 1, 64, 1000 / 20.87),  # brand-o/normiebench#3
]
UNSEEN = [
    ("qwen2.5-72b", "h100", "bf16", 2, 1024, 31.0),  # tenstorrent/tt-inference-server#143, vLLM
    ("qwen2.5-72b", "h100", "bf16", 2, 8192, 31.3),
    ("llama-3.1-405b", "mi300x", "fp8", 8, 192, 1000 / 36),  # blogs.oracle.com, vLLM, 128 tokens in and out
    ("llama-3-70b", "rtxa6000", "q4_k_m", 1, 512, 1000 / 14.58),  # LLAMA_CPP
    ("llama-3-70b", "l40s", "q4_k_m", 1, 512, 1000 / 15.31),
    ("llama-3-70b", "apple-m2-ultra", "q4_k_m", 1, 512, 1000 / 12.13),
    ("llama-3-70b", "apple-m3-max", "q4_k_m", 1, 512, 1000 / 7.53),
    ("llama-3.2-3b", "rtx4090", "q4_k_m", 1, 64, 1000 / 334.67),  # geerlingguy/ai-benchmarks
    ("llama-3.2-3b", "apple-m4", "q4_k_m", 1, 64, 1000 / 41.31),
    ("llama-3.2-3b", "raspberry-pi-5", "q4_k_m", 1, 64, 1000 / 4.51),
]
# model, device, format, devices, prompt tokens, ms to the first token, share that the prediction may be off
PROMPTS = [
    ("llama-2-7b", "a100-80gb", "fp16", 1, 2048, 132.4, 0.03),  # TRT
    ("llama-2-7b", "l40s", "fp8", 1, 2048, 80.1, 0.06),
    ("llama-2-7b", "h200", "fp8", 1, 2048, 30.2, 0.2),  # unseen: the H100's share of 16 bits
    ("llama-2-70b", "a100-80gb", "fp16", 8, 2048, 249.2, 0.2),  # unseen: eight devices
    ("qwen2.5-72b", "h100", "bf16", 2, 4096, 505.1, 0.07),
    ("qwen2.5-72b", "h100", "bf16", 2, 1024, 129.2, 0.07),  # unseen
    ("qwen2.5-72b", "h100", "bf16", 2, 8192, 1063.8, 0.07),  # unseen
    ("llama-3-8b", "rtx4090", "fp16", 1, 1024, 1024 / 9.05626, 0.03),  # LLAMA_CPP
    ("llama-3-8b", "apple-m3-max", "fp16", 1, 1024, 1024 / 0.75149, 0.03),
]


def target(model: str, on: str, format: str, gpus: int, tokens: int) -> Target:
    (found,) = make_plan(PlanSettings(model, on=(on,), format=(format,), prompt=tokens, output=1, gpus=gpus)).targets
    return found


@pytest.mark.parametrize(("model", "on", "format", "gpus", "context", "measured"), CALIBRATED)
def test_runs_that_the_shares_come_from(
    model: str, on: str, format: str, gpus: int, context: int, measured: float
) -> None:
    assert 1e3 * target(model, on, format, gpus, context).tpot_s == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(("model", "on", "format", "gpus", "context", "measured"), UNSEEN)
def test_runs_never_seen(model: str, on: str, format: str, gpus: int, context: int, measured: float) -> None:
    assert 1e3 * target(model, on, format, gpus, context).tpot_s == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("model", "on", "format", "gpus", "prompt", "measured", "off"), PROMPTS)
def test_prompts(model: str, on: str, format: str, gpus: int, prompt: int, measured: float, off: float) -> None:
    assert 1e3 * target(model, on, format, gpus, prompt).ttft_s == pytest.approx(measured, rel=off)
