"""python -m pagoda.benchmark.resident MODEL KV_TYPE REQUESTS PROMPT: what a process holds that has served such a load.

A process of its own, because only then nothing else is in it. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from pagoda.backends.cores import IS_MACOS
from pagoda.benchmark.engine import Bench, bench_settings, decode_slack
from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.engine.memory import peak_memory

GENERATED = 8


def resident_bytes() -> int:
    """Resident bytes of this process now; on macOS its peak."""
    if IS_MACOS:
        return peak_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(model: str, kv_type: str, requests: int, prompt: int) -> None:
    settings = EngineSettings(model=model, kv_type=kv_type)  # type: ignore[arg-type]
    settings = bench_settings(replace(settings, max_num_seqs=requests), prompt, GENERATED, (requests,))
    loaded = load_engine(settings)
    slack = decode_slack(settings, prompt, requests)
    Bench(loaded.core, prompt=prompt, gen=GENERATED, slack=slack).decode(requests)
    print(json.dumps({"resident_bytes": resident_bytes(), "kv_bytes": loaded.kv_plan.kv_bytes}))
    loaded.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
