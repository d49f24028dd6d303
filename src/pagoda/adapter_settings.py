"""Settings of LoRA adapters: `EngineSettings` holds them, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pagoda.kv_settings import KVSettings
from pagoda.settings import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings(KVSettings):
    """Which adapters are served, and how they are kept."""

    lora: Annotated[
        tuple[str, ...],
        Setting("LoRA adapter to serve beside the model, as name=path; repeat for several. PEFT folder or GGUF file."),
    ] = ()
    lora_dir: Annotated[
        Path | None,
        Setting("Folder of adapters: each is served by its name, and read when somebody first asks for it."),
    ] = None
    max_loras: Annotated[int, Setting("Adapters in one batch; requests for others wait.", minimum=1)] = 8
    max_cpu_loras: Annotated[
        int, Setting("Adapters kept in memory; those used longest ago are read from disk again.", minimum=1)
    ] = 64
    lora_memory_bytes: Annotated[
        int | None,
        Setting(
            "Memory for adapters, as 1GiB, which the KV cache leaves free: those used longest ago are read from disk "
            "again. By default what those of --lora take, and no bound for others.",
            "lora-memory",
            1,
            size=True,
        ),
    ] = None
    lora_type: Annotated[
        Literal["auto", "f32", "bf16", "int8"],
        Setting(
            "Number type of adapters in memory. auto: f32 beside a model in F32, bf16 beside one in 16 bits, and int8, "
            "with a scale a row, beside a quantized one."
        ),
    ] = "auto"
