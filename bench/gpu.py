"""On a GPU: checks Pagoda's CUDA backend, then times it beside the device's measured limits and beside transformers.

    python bench/gpu.py                                # everything; JSON and Markdown in bench/results/gpu.*
    python bench/gpu.py --only check steps             # a part or two; the others' results in the file stay
    python bench/gpu.py --only load --types BF16 --out bench/results/h100
    python bench/gpu.py --device cpu --shape tiny      # tests this script's own paths, and nothing else

Parts: check (logits of small models are right), steps (decoding and prefill of random weights of --shape), load (256
requests through the engine), peer (the same through transformers' continuous batching), default (the default model's
real weights: logits, answers beside the CPU's, steps). Each result is printed and written as it comes. Exits with 1
where a bar is broken or a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_checks import check_default, check_logits
from gpu_load import measure_load
from gpu_models import SHAPES, W4, Rates
from gpu_peer import measure_peer, missing
from gpu_steps import Device, ceilings, measure_steps
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.layers import Decoder
from pagoda.models.registry import load_model
from pagoda.sources import resolve

PARTS = ("check", "steps", "load", "peer", "default")
RESULTS = Path(__file__).parent / "results"

# The least share of the floor by part, start of the case and weights; on a GPU.
BARS = [
    ("steps", "decode 1 ", "BF16", 0.85),
    ("steps", "decode 1 ", W4, 0.70),
    ("steps", "decode 64 ", "BF16", 0.70),
    ("steps", "prefill 1 ", "BF16", 0.65),
    ("load", "256 ", "BF16", 0.75),
]
LEAST_OVER_PEER = 3.0


class Book:
    """Results by part, printed and saved one by one."""

    def __init__(self, out: Path | None, device: Device) -> None:
        self.out, self.device = out, device
        self.data: dict[str, Any] = {"device": device.title, "torch": torch.__version__, "parts": {}}
        if out is not None and out.with_suffix(".json").exists():
            before = json.loads(out.with_suffix(".json").read_text())
            if before["device"] == device.title:
                self.data["parts"] = before["parts"]

    def begin(self, part: str) -> Callable[..., None]:
        """→ what takes the rows of this part, whose earlier ones go"""
        self.data["parts"][part] = []
        print(f"\n{part}", flush=True)
        return partial(self.add, part)

    def add(self, part: str, **row: Any) -> None:
        row = {**row, "ok": self._is_ok(part, row)}
        self.data["parts"][part].append(row)
        print("  " + " | ".join(_cells(row)), flush=True)
        self.save()

    def _is_ok(self, part: str, row: dict[str, Any]) -> bool | None:
        """None: nothing is asked of it."""
        if "error" in row:
            return False
        if row.get("most") is not None or row.get("least") is not None:
            return bool(row.get("least", 0) <= row["value"] <= (row.get("most") or 1))
        if not self.device.is_gpu or "batch-invariant" in row["case"]:
            return None
        if part == "peer":
            return None if row.get("ratio") is None else row["ratio"] >= LEAST_OVER_PEER
        bars = [
            bar
            for p, case, weights, bar in BARS
            if p == part and row["case"].startswith(case) and row["weights"] == weights
        ]
        return row["share"] >= bars[0] if bars else None

    @property
    def broken(self) -> list[str]:
        rows = [row for rows in self.data["parts"].values() for row in rows]
        return [f"{row['case']}, {row['weights']}" for row in rows if row["ok"] is False]

    def save(self) -> None:
        """Whole files or none: a run that is cut off loses nothing."""
        if self.out is None:
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", json.dumps(self.data, indent=1) + "\n"), (".md", self.markdown())):
            path = self.out.with_suffix(suffix)
            path.with_suffix(".part").write_text(text)
            os.replace(path.with_suffix(".part"), path)

    def markdown(self) -> str:
        rates = self.data.get("rates", {})
        lines = [f"{self.data['device']}, torch {self.data['torch']}" + "".join(f", {k} {v}" for k, v in rates.items())]
        for part in PARTS:
            rows = self.data["parts"].get(part, [])
            if rows:
                lines += [
                    "",
                    f"## {part}",
                    "",
                    "| case | weights | result | tokens/s | floor | of it | | bar |",
                    "|---" * 8 + "|",
                ]
                lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
        return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    """Eight of them, whatever the row holds."""
    cells = [
        row["case"],
        row["weights"],
        f"{row['ms']:,.2f} ms" if "ms" in row else f"{row.get('value', ''):.3g}" if "value" in row else "",
    ]
    cells.append(f"{row['tokens_s']:,.0f}" if "tokens_s" in row else "")
    cells.append(f"{row['floor_ms']:,.2f} ms" if "floor_ms" in row else "")
    cells.append(f"{row['share']:.0%}" if "share" in row else "")
    cells.append(row.get("error", row.get("note", "")))
    cells.append({True: "met", False: "BROKEN", None: ""}[row["ok"]])
    return cells


class Run:
    """The parts, each a method of its name."""

    def __init__(self, args: argparse.Namespace, book: Book, rates: Rates) -> None:
        self.args, self.book, self.rates = args, book, rates
        self.device, self.shape = Device(args.device), SHAPES[args.shape]

    def check(self, add: Callable[..., None]) -> None:
        check_logits(self.device, self.args.types, add)

    def steps(self, add: Callable[..., None]) -> None:
        for type in self.args.types:
            measure_steps(self.device, self.shape, type, self.rates, add)

    def load(self, add: Callable[..., None]) -> None:
        for type in self.args.types:
            measure_load(self.device, self.shape, type, self.rates, add)
        measure_load(self.device, self.shape, self.args.types[0], self.rates, add, invariant=True)

    def peer(self, add: Callable[..., None]) -> None:
        why = missing()
        if why is not None:
            raise RuntimeError(f"no peer: {why}")
        loads = self.book.data["parts"].get("load", [])
        ours = next((row["tokens_s"] for row in loads if row["weights"] == "BF16" and "tokens_s" in row), None)
        measure_peer(self.device, self.shape, ours, add)

    def default(self, add: Callable[..., None]) -> None:
        path = resolve(self.args.model).path
        check_default(self.device, path, add)
        model = load_model(open_checkpoint(path))
        assert isinstance(model, Decoder)
        measure_steps(self.device, SHAPES["smollm2-135m"], "default", self.rates, add, model=model)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run; all by default")
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b", help="of the random weights")
    parser.add_argument(
        "--types", nargs="+", default=["BF16", W4, "Q4_K"], help=f"of the random weights, {W4} or GGUF's"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", default="smollm2-135m", help="the default model's name, or its file")
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.md; bench/results/gpu on a GPU, else nowhere")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu --shape tiny tests the script itself")
    device = Device(args.device)
    if not device.is_gpu:
        torch.set_num_threads(1)  # tensors are tiny, and threads only wait for each other
    book = Book(args.out or (RESULTS / "gpu" if device.is_gpu else None), device)
    rates = ceilings(device)
    book.data["rates"] = asdict(rates)
    print(f"{device.title}: copy {rates.copy / 1e9:,.0f} GB/s, read {rates.read / 1e9:,.0f} GB/s, "
          f"product {rates.product / 1e12:,.1f} TFLOP/s")  # fmt: skip
    run = Run(args, book, rates)
    for part in args.only:
        add, start = book.begin(part), time.perf_counter()
        try:
            getattr(run, part)(add)
        except Exception as error:  # the other parts can still tell something
            traceback.print_exc()
            add(
                case=part,
                weights="",
                error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            )
        print(f"  {time.perf_counter() - start:.1f} s", flush=True)
    if book.broken:
        print("\nbroken: " + "; ".join(book.broken))
    return 1 if book.broken else 0


if __name__ == "__main__":
    sys.exit(main())
