"""Pagoda's own bench verbs, run as child processes, and their JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def bench(model: Path, *, prompt: int, gen: int, batch: int, threads: int, runs: int) -> dict[str, Any]:
    """`pagoda bench` for one batch size: its result, with `machine` beside."""
    shape = ["--prompt", str(prompt), "--gen", str(gen), "--batch", str(batch)]
    report = _run("bench", str(model), *shape, "--threads", str(threads), "--runs", str(runs), "--json")
    return {**report["results"][0], "machine": report["machine"]}


def load(url: str, *, concurrency: int, prompt: int, output: int, requests: int) -> dict[str, Any]:
    """`pagoda bench serve`: what `url` did under load. SystemExit if a request failed."""
    shape = ["--concurrency", str(concurrency), "--prompt", str(prompt), "--output", str(output)]
    return _run("bench", "serve", "--url", url, *shape, "--requests", str(requests), "--json")


def _run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "pagoda", *arguments], capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr)[-1000:].strip()
        raise SystemExit(f"pagoda {' '.join(arguments)} exited with {done.returncode}: {said}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
