"""Settings of the KV cache: `EngineSettings` holds them, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSettings(Settings):
    """How keys and values are kept, and where those of idle prefixes go."""

    kv_type: Annotated[
        Literal["auto", "f16", "bf16", "f32", "int16", "int8", "fp8"],
        Setting(
            "Number type of the KV cache. int16: codes with a scale for each token, on CPUs alone; fp8 on GPUs alone. "
            "auto: int16 on CPUs with AVX2 or AVX-512, f16 elsewhere."
        ),
    ] = "auto"
    kv_memory_bytes: Annotated[
        int | None,
        Setting(
            "Size of the KV cache, as 4GiB; by default --max-num-seqs times 2048 tokens, or times --max-context if "
            "given, within --memory-utilization, and on a GPU all that this allows.",
            "kv-memory",
            1,
            size=True,
        ),
    ] = None
    prefix_caching: Annotated[bool, Setting("Reuse the KV of prompts that begin alike.")] = True
    state_interval: Annotated[
        int,
        Setting("Of models with recurrent layers: tokens between snapshots of the state, for prefixes.", minimum=16),
    ] = 512
    kv_offload: Annotated[
        str | None,
        Setting(
            "PATH:SIZE, as /var/cache/pagoda:20GB: KV of idle prefixes is kept in that folder, too, and found again "
            "after eviction and after a restart."
        ),
    ] = None
    kv_host_memory_bytes: Annotated[
        int | None,
        Setting(
            "On a GPU: KV of idle prefixes is kept in so much of the machine's memory, too, as 32GiB, and found again "
            "after eviction. With --kv-offload: before the files.",
            "kv-host-memory",
            1,
            size=True,
        ),
    ] = None
    kv_offload_key: Annotated[
        str | None, Setting("Encrypt that folder with this secret; best set as PAGODA_KV_OFFLOAD_KEY.", secret=True)
    ] = None
