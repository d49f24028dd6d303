"""Pagoda and llama.cpp side by side: pairs of runs, A B B A …, and the medians of their ratios.

    LLAMA_CPP_BIN=build/bin python bench/compare.py model.gguf other.gguf [--pairs 5] [--only decode-1,http-16]

With --activation-type int8 Pagoda multiplies what llama.cpp does: activations in bytes, a scale for 32 of them.

Machines drift: clocks, neighbours, caches. So each ratio is of two runs that stand next to each other, the order
turns round from pair to pair, and the median of the ratios is what counts. Beside it stand the shares of what the
machine can do, from ceilings measured in the same runs. Prints a Markdown table; the figures of every run go to
bench/results/ as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ours
from llama import Llama
from servers import pagoda_command, serving

RESULTS = Path(__file__).parent / "results"
GEN = 64  # tokens of each sequence in a decode measure
SLOTS = 16
HTTP_PROMPT, HTTP_OUTPUT, HTTP_REQUESTS = 256, 64, 64
QUIET_LOAD = 0.5  # load average above which timings are not to be trusted

Figures = dict[str, float]  # by metric


@dataclass(frozen=True, slots=True)
class Rig:
    """What the measures are taken with."""

    llama: Llama
    threads: int
    runs: int  # of a program within one run of a pair


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing to compare. Both sides return the same metrics; ours may return shares of ceilings besides."""

    name: str
    ours: Callable[[Rig, Path], Figures]
    theirs: Callable[[Rig, Path], Figures]


def prefill(tokens: int) -> Measure:
    def ours_(rig: Rig, model: Path) -> Figures:
        row = ours.bench(model, prompt=tokens, gen=1, batch=1, threads=rig.threads, runs=rig.runs)
        return {"tok_s": row["prefill_tok_s"], "share": row["compute_share"], **_ceilings(row)}

    def theirs(rig: Rig, model: Path) -> Figures:
        return {"tok_s": rig.llama.prefill(model, tokens, rig.runs)}

    return Measure(f"prefill-{tokens}", ours_, theirs)


def decode(streams: int, context: int) -> Measure:
    def ours_(rig: Rig, model: Path) -> Figures:
        row = ours.bench(model, prompt=context, gen=GEN, batch=streams, threads=rig.threads, runs=rig.runs)
        shares = {"share": row["bandwidth_share"], "compute_share": row["decode_compute_share"]}
        return {"tok_s": row["decode_tok_s"], "between": row["between_share"], **shares, **_ceilings(row)}

    def theirs(rig: Rig, model: Path) -> Figures:
        if streams == 1:
            return {"tok_s": rig.llama.decode(model, context, GEN, rig.runs)}
        return {"tok_s": rig.llama.batched_decode(model, streams, context, GEN)}

    return Measure(f"decode-{streams}" if context == 128 else f"decode-{streams}-at-{context}", ours_, theirs)


def http(clients: int, requests: int) -> Measure:
    context = SLOTS * (HTTP_PROMPT + HTTP_OUTPUT + 64)

    def ours_(rig: Rig, model: Path) -> Figures:
        flags = ["--threads", str(rig.threads)]
        with serving(lambda port: pagoda_command(model, port, *flags), "/ready") as server:
            return _under_load(server.url, clients, requests)

    def theirs(rig: Rig, model: Path) -> Figures:
        with serving(lambda port: rig.llama.server_command(model, port, SLOTS, context), "/health") as server:
            return _under_load(server.url, clients, requests)

    return Measure(f"http-{clients}", ours_, theirs)


def _under_load(url: str, clients: int, requests: int) -> Figures:
    load = ours.load(url, concurrency=clients, prompt=HTTP_PROMPT, output=HTTP_OUTPUT, requests=requests)
    ttft, tpot = load["ttft_ms"], load["tpot_ms"]
    return {
        "tok_s": load["output_tok_s"],
        "ttft_p50_ms": ttft["p50"],
        "tpot_p50_ms": tpot["p50"],
        "tpot_p99_ms": tpot["p99"],
    }


def _ceilings(row: dict[str, Any]) -> Figures:
    machine = row["machine"]
    return {"read_bandwidth": machine["read_bandwidth"], "int8_peak": machine["int8_peak"]}


LONG = decode(1, 8000)  # takes minutes, and a model of such a context: only where it is named
MEASURES = [
    prefill(512),
    prefill(2048),
    decode(1, 128),
    decode(1, 2048),
    decode(16, 128),
    http(16, HTTP_REQUESTS),
    http(1, 8),
    LONG,
]
METRICS = {
    "tok_s": "tok/s",
    "ttft_p50_ms": "TTFT p50, ms",
    "tpot_p50_ms": "TPOT p50, ms",
    "tpot_p99_ms": "TPOT p99, ms",
}


def pairs(measure: Measure, rig: Rig, model: Path, count: int) -> list[dict[str, Figures]]:
    """`count` pairs of neighbouring runs; who comes first alternates."""
    done = []
    for number in range(count):
        sides = {"pagoda": measure.ours, "llama_cpp": measure.theirs}
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        done.append({side: sides[side](rig, model) for side in order})
        print(f"{model.name} {measure.name} {number + 1}/{count}: {done[-1]}", file=sys.stderr)
    return done


def rows_of(model: Path, measure: Measure, done: Sequence[dict[str, Figures]]) -> list[dict[str, Any]]:
    """One row for each metric that both sides have: medians, and the median of the pairs' ratios."""
    rows = []
    for metric in METRICS:
        if metric in done[0]["pagoda"]:
            values = [(pair["pagoda"][metric], pair["llama_cpp"][metric]) for pair in done]
            ratios = [a / b for a, b in values]
            rows.append(
                {
                    "file": model.name,
                    "measure": measure.name,
                    "metric": metric,
                    "pagoda": statistics.median(a for a, _ in values),
                    "llama_cpp": statistics.median(b for _, b in values),
                    "ratio": statistics.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                    "share": _median(done, "share") if metric == "tok_s" else None,
                    "compute_share": _median(done, "compute_share") if metric == "tok_s" else None,
                }
            )
    return rows


def _median(done: Sequence[dict[str, Figures]], figure: str) -> float | None:
    values = [pair["pagoda"][figure] for pair in done if pair["pagoda"].get(figure) is not None]
    return statistics.median(values) if values else None


def ceilings(done: Sequence[dict[str, Figures]]) -> dict[str, float | None]:
    return {name: _median(done, name) for name in ("read_bandwidth", "int8_peak")}


def markdown(rows: Sequence[dict[str, Any]], machine: dict[str, float | None]) -> str:
    bandwidth, peak = machine["read_bandwidth"], machine["int8_peak"]
    reads = f"{bandwidth / 1e9:.1f} GB/s" if bandwidth else "not measured"
    ops = f"{peak / 1e9:.0f} Gop/s" if peak else "not measured"
    lines = [
        f"Ceilings measured in the same runs: read {reads}, int8 {ops}.",
        "",
        "| file | measure | metric | Pagoda | llama.cpp | ratio | range | of the ceiling |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        low, high = row["ratio_range"]
        cells = [row["file"], row["measure"], METRICS[row["metric"]], f"{row['pagoda']:.1f}", f"{row['llama_cpp']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['ratio']:.2f}", f"{low:.2f}–{high:.2f}", _shares(row)]) + " |")
    return "\n".join(lines)


def _shares(row: dict[str, Any]) -> str:
    if row["share"] is None:
        return ""
    if row["measure"].startswith("prefill"):
        return f"{row['share']:.0%} of int8"
    compute = f", {row['compute_share']:.0%} of int8" if row["compute_share"] is not None else ""
    return f"{row['share']:.0%} of read{compute}"


def save(report: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y-%m-%d-%H%M%S.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--runs", type=int, default=2, help="of each program within one run of a pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activation-type", choices=("int16", "int8"), default="int16", help="Pagoda's")
    parser.add_argument("--only", default="", help=f"of {', '.join(m.name for m in MEASURES)}; by commas")
    parser.add_argument("--at-least", type=float, help="exit with 1 if a ratio of tok/s is below this")
    options = parser.parse_args()
    unknown = set(filter(None, options.only.split(","))) - {measure.name for measure in MEASURES}
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    options = arguments()
    rig = Rig(Llama.require(options.threads), options.threads, options.runs)
    os.environ["PAGODA_ACTIVATION_TYPE"] = options.activation_type  # of the children
    busy = os.getloadavg()[0]
    if busy > QUIET_LOAD:
        print(
            f"load average is {busy:.1f}: others use this machine, the timings are not to be trusted", file=sys.stderr
        )
    only = set(filter(None, options.only.split(","))) or {measure.name for measure in MEASURES if measure is not LONG}
    rows: list[dict[str, Any]] = []
    raw: list[dict[str, Any]] = []
    everything: list[dict[str, Figures]] = []
    for model in options.models:
        for measure in (measure for measure in MEASURES if measure.name in only):
            done = pairs(measure, rig, model, options.pairs)
            everything += done
            raw.append({"file": model.name, "measure": measure.name, "pairs": done})
            rows += rows_of(model, measure, done)
    machine = ceilings(everything)
    setup = {"llama_cpp": rig.llama.version(), "activation_type": options.activation_type, "machine": machine}
    path = save({**setup, "load": busy, "rows": rows, "pairs": raw})
    print(f"{markdown(rows, machine)}\n\n{path}")
    slow = [row for row in rows if row["metric"] == "tok_s" and row["ratio"] < (options.at_least or 0)]
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()
