"""python -m pagoda.benchmark.resident MODEL KV_TYPE REQUESTS PROMPT: what a process holds that has served such a load.

A process of its own, because only then nothing else is in it. Prints JSON. Pages of the model's file are counted apart:
they are the OS's cache, and how many of them a look at the embedding table maps differs between kernels.
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


def mapped_bytes(path: Path) -> int:
    """Resident bytes of the mapping of this file, or of those in this folder; 0 on macOS, which does not tell."""
    total, inside = 0, False
    for line in [] if IS_MACOS else Path("/proc/self/smaps").read_text().splitlines():
        if line[:1].islower() or line[:1].isdigit():  # a mapping begins: its addresses, and last what is mapped
            name = line.split(maxsplit=5)[-1]
            inside = name == str(path) or name.startswith(f"{path}/")
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def main(model: str, kv_type: str, requests: int, prompt: int) -> None:
    settings = EngineSettings(model=model, kv_type=kv_type)  # type: ignore[arg-type]
    settings = bench_settings(replace(settings, max_num_seqs=requests), prompt, GENERATED, (requests,))
    loaded = load_engine(settings)
    slack = decode_slack(settings, prompt, requests)
    Bench(loaded.core, prompt=prompt, gen=GENERATED, slack=slack).decode(requests)
    file_bytes = mapped_bytes(Path(model).resolve())
    figures = {"resident_bytes": resident_bytes() - file_bytes, "file_bytes": file_bytes}
    print(json.dumps({**figures, "kv_bytes": loaded.kv_plan.kv_bytes}))
    loaded.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
