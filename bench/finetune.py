"""Training speed, memory and losses: `pagoda finetune` on packed weights, beside trl over bitsandbytes' NF4.

    python bench/finetune.py --model smollm2-135m --folder FOLDER [--rounds 2] [--steps 10] [--threads 2] [--plain]

FOLDER is the model in bfloat16 (`pagoda convert MODEL -o FOLDER`), which the peer reads. Both see the same examples in
the same order, four a step, rank 8 on all linears, and take turns. One environment needs what peer_trl.py needs and
Pagoda. Prints JSON a run, and then the ratios of the last round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune_task import make

HERE = Path(__file__).parent


def ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    out = folder / "adapter"
    shutil.rmtree(out, ignore_errors=True)
    flags = {
        "--data": folder / "train.jsonl",
        "-o": out,
        "--rank": 8,
        "--max-steps": args.steps,
        "--batch": 4,
        "--learning-rate": 2e-4,
        "--warmup": 0,
        "--held-out": 0,
        "--threads": args.threads,
        "--save-every": 1000,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    more = ["--no-checkpointing"] if args.no_checkpointing else []
    command = [sys.executable, "-m", "pagoda", "finetune", args.model, *words, "--no-shuffle", *more]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL if args.quiet else None)
    record = json.loads((out / "pagoda_finetune.json").read_text())
    found = {key: record[key] for key in ("seconds", "tokens", "tokens_per_second")}
    return {**found, "peak_mb": record["peak_bytes"] / 1e6, "losses": [value for _, value in record["loss"]]}


def peer(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [sys.executable, HERE / "peer_trl.py", args.folder, folder / "train.jsonl", "--steps", args.steps]
    command += ["--threads", args.threads, *(["--plain"] if args.plain else [])]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="the peer's weights stay bfloat16")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        make(folder)
        for _ in range(args.rounds):
            one, other = ours(args, folder), peer(args, folder)
            print(json.dumps({"pagoda": one, "trl": other}), flush=True)
    print(f"tokens/s {one['tokens_per_second'] / other['tokens_per_second']:.2f} times the peer's")
    print(f"peak memory {one['peak_mb'] / other['peak_mb']:.2f} of the peer's")
    print(f"last loss {one['losses'][-1] / other['losses'][-1]:.3f} of the peer's")


if __name__ == "__main__":
    main()
