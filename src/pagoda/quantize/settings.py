"""What a user can say about a quantization: flags of `pagoda quantize`, and the settings of a `Job`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class QuantizeSettings(Settings):
    """Flags of `pagoda quantize`. `methods.py` says which a method reads."""

    table = "quantize"

    to: Annotated[str, Setting("Format or method; see the list above.")] = "q4_k_m"
    bits: Annotated[int, Setting("Bits a weight: gptq 2, 3, 4 or 8; awq 4.", minimum=2, maximum=8)] = 4
    group_size: Annotated[
        int, Setting("gptq, awq: weights that share a scale, 32 to 128; -1: a whole row.", minimum=-1, maximum=1024)
    ] = 128
    symmetric: Annotated[
        bool, Setting("gptq: the same range below zero as above, which more kernels take; else a zero point a group.")
    ] = True
    act_order: Annotated[
        Literal["static", "full", "none"],
        Setting("gptq: weightiest columns first; static keeps groups in order, full does not and is slower to serve."),
    ] = "static"
    damping: Annotated[
        float, Setting("gptq: share of the Hessian's mean that is added to its diagonal.", minimum=0, maximum=1)
    ] = 0.01
    calibration: Annotated[
        str,
        Setting(
            "self: text that the model writes; or a text, JSONL or chat JSONL file, or hf:owner/dataset; for gptq, "
            "awq and --imatrix auto."
        ),
    ] = "self"
    calibration_samples: Annotated[int, Setting("Windows of calibration text.", minimum=1)] = 128
    calibration_tokens: Annotated[int, Setting("Tokens of each window.", minimum=8)] = 512
    imatrix: Annotated[
        str | None,
        Setting("GGUF formats: importance matrix, a file (.dat or .gguf) or auto: from the calibration text."),
    ] = None
    save_imatrix: Annotated[Path | None, Setting("Also keep the matrix of --imatrix auto, as .gguf or .dat.")] = None
    tensor_type: Annotated[
        tuple[str, ...],
        Setting("GGUF formats: REGEX=TYPE, a type for tensors whose name matches; repeat for several, the first wins."),
    ] = ()
    dtype: Annotated[Literal["bf16", "f16", "f32"], Setting("safetensors: number type of the weights.")] = "bf16"
    max_kld: Annotated[
        float | None, Setting("Fail, and leave nothing behind, if the mean KL divergence is larger.", minimum=0)
    ] = None
    verify: Annotated[
        bool,
        Setting(
            "Load what was made before it gets its name; conversions must also predict a text as their source does."
        ),
    ] = True
    device: Annotated[
        Literal["auto", "cpu", "cuda", "torch-cpu"],
        Setting(
            "gptq, awq and --imatrix auto: where the calibration text is computed, and gptq and awq round. auto: a GPU "
            "where there is one, and torch and triton are installed; torch-cpu tests that without one."
        ),
    ] = "auto"
    threads: Annotated[int, Setting("Compute threads; 0: one per physical core allowed.", minimum=0)] = 0
    force: Annotated[bool, Setting("Replace an output that exists.")] = False
