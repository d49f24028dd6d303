"""Frozen settings, decided once at start.

Precedence: flag > environment (`PAGODA_<NAME>`) > TOML file > default. Nothing else reads the environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to start."""

    model: str = "smollm2-135m"  # anything `pagoda.sources.resolve` takes
    backend: Literal["cpu", "reference"] = "cpu"
    threads: int = 0  # 0: one per physical core this process may use
    isa: str | None = None  # generic, avx2, avx512, neon; None: the best there is
    kv_type: Literal["f16", "bf16", "f32", "int8"] = "f16"
    max_context: int | None = None  # tokens; None: the model's own
    max_batch_tokens: int = 512  # token budget of one step
    max_num_seqs: int = 64  # sequences running at once
    kv_memory_bytes: int | None = None  # None: from memory_utilization
    memory_utilization: float = 0.9  # of the memory that is available at start
    prefix_caching: bool = True
    seed: int = 0  # base of the seeds of requests that bring none


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the HTTP server needs besides the engine."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    max_queue_requests: int = 256
    max_queue_tokens: int = 262_144  # prompt tokens waiting
    max_body_bytes: int = 8 * 1024 * 1024
    shutdown_timeout: float = 30.0  # seconds
    metrics_compat: Literal["none", "vllm"] = "none"
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
