"""llama.cpp as the peer: its binaries, found where `LLAMA_CPP_BIN` says, and their answers as numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "LLAMA_CPP_BIN"


@dataclass(frozen=True, slots=True)
class Llama:
    """llama.cpp's binaries in `folder`. Speeds are tokens a second; SystemExit with stderr's end if one fails."""

    folder: Path
    threads: int

    @classmethod
    def find(cls, threads: int) -> Llama | None:
        """The build that `LLAMA_CPP_BIN` names, None when it names none."""
        folder = os.environ.get(ENVIRONMENT)
        return cls(Path(folder), threads) if folder else None

    @classmethod
    def require(cls, threads: int) -> Llama:
        found = cls.find(threads)
        if found is None:
            raise SystemExit(f"set {ENVIRONMENT} to the folder with llama-bench, llama-server and the others")
        return found

    def version(self) -> str:
        """As the binaries say it, which is 0 (unknown) for a build outside a git checkout."""
        done = self._run("llama-server", "--version")
        found = re.search(r"version: (.*)", done.stdout + done.stderr)
        return found[1] if found else "unknown"

    def perplexity(self, model: Path, text: Path, context: int, chunks: int | None) -> float:
        limit = ["--chunks", str(chunks)] if chunks else []
        files = ["-m", str(model), "-f", str(text)]
        size = ["-c", str(context), "-b", str(context)]
        done = self._run("llama-perplexity", *files, *size, "-t", str(self.threads), *limit)
        found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
        if not found:
            raise SystemExit(f"llama-perplexity printed no estimate: {_tail(done)}")
        return float(found[1])

    def prefill(self, model: Path, tokens: int, runs: int) -> float:
        return self._bench(model, ["-p", str(tokens), "-n", "0", "-r", str(runs)])

    def decode(self, model: Path, context: int, tokens: int, runs: int) -> float:
        """One stream: `tokens` tokens after a context of `context`."""
        return self._bench(model, ["-p", "0", "-n", str(tokens), "-d", str(context), "-r", str(runs)])

    def batched_decode(self, model: Path, streams: int, context: int, tokens: int) -> float:
        """All streams together; prompts are not shared."""
        shape = ["-npp", str(context), "-ntg", str(tokens), "-npl", str(streams)]
        room = ["-c", str(streams * (context + tokens)), "-b", "2048", "-ub", "512"]
        done = self._run("llama-batched-bench", "-m", str(model), *shape, *room, *self._threads, *JSONL)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return float(rows[-1]["speed_tg"])

    def server_command(self, model: Path, port: int, slots: int, context: int) -> list[str]:
        """llama-server with `slots` sequences that share `context` tokens of f16 KV, without prompt cache."""
        sizes = ["-np", str(slots), "-c", str(context), *self._threads, "-tb", str(self.threads)]
        quiet = ["--no-webui", "--log-disable"]
        caches = ["--no-cache-prompt", "--cache-ram", "0"]
        return [self._path("llama-server"), "-m", str(model), "--port", str(port), *sizes, *caches, *quiet]

    @property
    def _threads(self) -> list[str]:
        return ["-t", str(self.threads)]

    def _bench(self, model: Path, shape: list[str]) -> float:
        done = self._run("llama-bench", "-m", str(model), *self._threads, *shape, "-o", "json")
        return float(json.loads(done.stdout)[0]["avg_ts"])

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([self._path(program), *arguments], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(arguments)} exited with {done.returncode}: {_tail(done)}")
        return done

    def _path(self, program: str) -> str:
        path = self.folder / program
        if not path.is_file():
            raise SystemExit(f"{ENVIRONMENT}: {path} does not exist")
        return str(path)


JSONL = ("--output-format", "jsonl")


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr)[-1000:].strip()
