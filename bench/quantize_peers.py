"""GPTQ and AWQ beside GPTQModel and llm-compressor: the same model, calibration tokens and evaluator.

    python bench/quantize_peers.py FOLDER --work out                    # Pagoda's and round-to-nearest
    GPTQMODEL_PYTHON=…/bin/python LLMCOMPRESSOR_PYTHON=…/bin/python \
        python bench/quantize_peers.py FOLDER --work out --group-size 64 --only gptq

FOLDER is a Hugging Face folder of plain floats (`pagoda convert model.gguf --dtype f32 -o FOLDER`). Each peer runs in
the Python that its variable names; without one it is left out. Peers compute in float32, as Pagoda does, which is also
what is fastest on CPUs without bfloat16. What was made stays in the work folder, and is not made again.

Every result is unpacked to float32 and scored by one forward pass in numpy: perplexity of all tokens but the first of
each window of plays (`texts.py`), and KL divergence from the original at every fourth. CPU time is user and system
time of the whole process: on a machine that others use too it says more than the time on the wall.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.quantized import as_floats
from pagoda.models.registry import load_model
from pagoda.quantize.algorithms.awq import groupwise
from pagoda.quantize.algorithms.grid import full_range
from pagoda.quantize.calibration.forward import WindowOps
from pagoda.quantize.calibration.linear_source import LinearSource, PlainWeights
from pagoda.quantize.calibration.sample import model_sample
from pagoda.quantize.calibration.values import LinearCall, SampleValue
from pagoda.quantize.settings import QuantizeSettings
from pagoda.text.tokenizer import load_tokenizer
from pagoda.types import FloatArray, Int32Array
from texts import prose

HERE = Path(__file__).absolute().parent
KEPT_EVERY = 4  # of an original's predictions one in so many is kept for divergence
BITS = 4

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Maker:
    """Who makes a folder: the variable that names its Python (none: this one), and its command after that."""

    name: str
    method: str
    python: str | None
    command: Callable[[Path, Path, Path, argparse.Namespace], list[str]]


def pagoda(method: str) -> Maker:
    def command(model: Path, windows: Path, out: Path, o: argparse.Namespace) -> list[str]:
        sample = ["--calibration-samples", str(o.samples), "--calibration-tokens", str(o.tokens)]
        shape = ["--to", method, "--group-size", str(o.group_size), "-o", str(out)]
        return ["-m", "pagoda", "quantize", str(model), *shape, *sample]

    return Maker("Pagoda", method, None, command)


def peer(name: str, method: str, variable: str, script: str) -> Maker:
    def command(model: Path, windows: Path, out: Path, o: argparse.Namespace) -> list[str]:
        return [str(HERE / script), method, str(model), str(windows), str(out), str(o.group_size)]

    return Maker(name, method, variable, command)


MAKERS = (
    pagoda("gptq"),
    peer("GPTQModel", "gptq", "GPTQMODEL_PYTHON", "peer_gptqmodel.py"),
    peer("llm-compressor", "gptq", "LLMCOMPRESSOR_PYTHON", "peer_llmcompressor.py"),
    pagoda("awq"),
    peer("GPTQModel", "awq", "GPTQMODEL_PYTHON", "peer_gptqmodel.py"),
    peer("llm-compressor", "awq", "LLMCOMPRESSOR_PYTHON", "peer_llmcompressor.py"),
)


# Making


def make(maker: Maker, windows: Path, options: argparse.Namespace) -> Path | None:
    """The folder that the maker makes, and beside it what it cost. None where its Python is not known."""
    out: Path = options.work / f"{maker.name}-{maker.method}"
    cost = out.with_suffix(".json")
    if cost.exists():
        return out
    python = sys.executable if maker.python is None else os.environ.get(maker.python)
    if not python:
        return None
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    with out.with_suffix(".log").open("w") as log:
        command = [python, *maker.command(options.model, windows, out, options)]
        # In the work folder, since GPTQModel writes a folder of logs where it stands.
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=options.work)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed; see {out.with_suffix('.log')}")
    seconds = {"wall_s": time.perf_counter() - started, "cpu_s": usage.ru_utime + usage.ru_stime}
    cost.write_text(json.dumps({**seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9}))
    return out


def calibration(options: argparse.Namespace) -> Path:
    """The tokens that Pagoda calibrates with, [N, T], in a file for the others."""
    path: Path = options.work / f"calibration-{options.samples}x{options.tokens}.npy"
    if not path.exists():
        with open_checkpoint(options.model) as checkpoint:
            asked = QuantizeSettings(calibration_samples=options.samples, calibration_tokens=options.tokens)
            sample = model_sample(checkpoint, asked, options.tokens, lambda what, done, total: None)
        np.save(path, sample.windows)
    return path


# Scoring


@dataclass(frozen=True, slots=True)
class Nearest:
    """A `LinearSource`: weights rounded to the nearest point of grids over the whole range of their groups."""

    size: int
    symmetric: bool

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        return [self.rounded(as_floats(call.weight)) for call in calls]

    def rounded(self, w: FloatArray) -> FloatArray:
        groups = w.T.reshape(-1, self.size, len(w))
        grid = groupwise(full_range(groups, BITS, symmetric=self.symmetric))
        return np.asarray(grid.rounded(groups).reshape(w.T.shape).T, np.float32)


@dataclass(slots=True)
class Score:
    """Negative log-likelihoods of the text's tokens, log probabilities at some, divergence from another's."""

    nll: list[Doubles] = field(default_factory=list)
    kept: list[npt.NDArray[np.float16]] = field(default_factory=list)
    kld: list[Doubles] = field(default_factory=list)

    def add(self, tokens: Int32Array, logits: FloatArray, original: Score | None) -> None:
        logits = logits.reshape(*tokens.shape, -1)[:, :-1]
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        self.nll.append(-np.take_along_axis(logits, tokens[:, 1:, None], axis=-1).astype(np.float64).ravel())
        some = logits[:, ::KEPT_EVERY]
        if original is None:
            self.kept.append(some.astype(np.float16))
            return
        theirs = original.kept[len(self.kld)].astype(np.float32)
        self.kld.append((np.exp(theirs) * (theirs - some)).sum(axis=-1, dtype=np.float64).ravel())


def score(path: Path, windows: Int32Array, source: LinearSource, original: Score | None) -> Score:
    """Windows [N, T] through the model at `path` with weights from `source`."""
    found = Score()
    with open_checkpoint(path) as checkpoint:
        ops = WindowOps(
            windows,
            source,
            on_logits=lambda i, logits: found.add(ops.token_chunks[i], logits, original),
            chunk_tokens=windows.shape[1],
        )
        load_model(checkpoint).forward(ops)
    return found


def row(name: str, found: Score, original: Score | None, cost: dict[str, float]) -> dict[str, Any]:
    nll = np.concatenate(found.nll)
    perplexity = math.exp(nll.mean())
    values: dict[str, Any] = {"name": name, "tokens": len(nll), "perplexity": perplexity}
    if original is not None:
        change, kld = nll - np.concatenate(original.nll), np.concatenate(found.kld)
        values |= {"ratio": math.exp(change.mean()), "ratio_error": float(change.std()) / math.sqrt(len(nll))}
        values |= {"kld": float(kld.mean()), "kld_error": float(kld.std()) / math.sqrt(len(kld))}
    return values | cost


def held_out(model: Path, options: argparse.Namespace) -> Int32Array:
    """Whole windows of the text; BOS, where the model has one, takes the place of each first token."""
    with open_checkpoint(model) as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer.encode(prose())
    count = min(len(ids) // options.context, options.windows)
    cut = np.array(ids[: count * options.context], dtype=np.int32).reshape(count, options.context)
    if prefix := tokenizer.vocabulary.prefix:
        cut[:, : len(prefix)] = prefix
    return cut


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| | perplexity | over the original's | KLD | CPU s | peak GB |", "|---|---|---|---|---|---|"]
    for r in rows:
        loss = cost = " | "
        if "ratio" in r:
            loss = f"{r['ratio'] - 1:+.2%} (±{r['ratio_error']:.2%}) | {r['kld']:.4f} (±{r['kld_error']:.4f})"
        if "cpu_s" in r:
            cost = f"{r['cpu_s']:.0f} | {r['peak_gb']:.2f}"
        lines.append(f"| {r['name']} | {r['perplexity']:.3f} | {loss} | {cost} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, help="where results are kept")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=128, help="windows of calibration text")
    parser.add_argument("--tokens", type=int, default=512, help="of each of them")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window that is scored")
    parser.add_argument("--windows", type=int, default=40, help="that are scored")
    parser.add_argument("--only", choices=("gptq", "awq"))
    parser.add_argument("--make", action="store_true", help="make what there is to make, and score nothing")
    parser.add_argument("--score", nargs="*", type=Path, default=[], metavar="FOLDER", help="of other folders, too")
    options = parser.parse_args()
    options.model, options.work = options.model.absolute(), options.work.absolute()
    return options


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    windows = calibration(options)
    made = {}
    for maker in MAKERS:
        if options.only in (None, maker.method) and (folder := make(maker, windows, options)):
            made[f"{maker.name} {maker.method.upper()}"] = folder
    if options.make:
        return
    text = held_out(options.model, options)
    original = score(options.model, text, PlainWeights(), None)
    rows = [row("original", original, None, {})]
    for symmetric, name in ((True, "nearest, symmetric"), (False, "nearest, with zeros")):
        found = score(options.model, text, Nearest(options.group_size, symmetric), original)
        rows.append(row(name, found, original, {}))
    for name, folder in made.items() | {(path.name, path) for path in options.score}:
        cost = folder.with_suffix(".json")
        found = score(folder, text, PlainWeights(), original)
        rows.append(row(name, found, original, json.loads(cost.read_text()) if cost.exists() else {}))
        print(rows[-1], file=sys.stderr, flush=True)
    (options.work / "rows.json").write_text(json.dumps(rows, indent=2))
    print(markdown(rows))


if __name__ == "__main__":
    main()
