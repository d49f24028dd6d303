"""Perplexity of model files through Pagoda, by llama-perplexity's method, beside llama-perplexity's own figure.

    python bench/perplexity.py model.gguf other.gguf            # through the CPU backend
    LLAMA_CPP_BIN=build/bin python bench/perplexity.py model.gguf
    python bench/perplexity.py model.gguf --agreement 4         # next tokens against the reference backend, too

The method: the text's tokens are cut into windows of 512 that do not overlap, the rest is dropped; where the
tokenizer puts a BOS before texts, it takes the place of each window's first token. In each window the tokens after
the first half are predicted from all before them; perplexity is exp of the mean negative log-likelihood of those.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama import Llama
from pagoda.backends.base import LoadedModel, run_batch
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, Int32Array
from texts import prose_file

KV_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(mean negative log-likelihood) of `tokens` tokens, and its standard error."""

    value: float
    error: float
    tokens: int

    @classmethod
    def of(cls, nll: npt.NDArray[np.float64]) -> Perplexity:
        value = math.exp(nll.mean())
        return cls(value, value * float(nll.std(ddof=0)) / math.sqrt(len(nll) - 1), len(nll))


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward pass scored: negative log-likelihoods [R] and likeliest next tokens [R]."""

    nll: npt.NDArray[np.float64]
    likeliest: npt.NDArray[np.int64]


def windows(ids: Sequence[int], context: int, bos_id: int | None) -> list[Int32Array]:
    """Whole windows of `context` tokens; BOS, if any, replaces the first token of each."""
    count = len(ids) // context
    cut = np.array(ids[: count * context], dtype=np.int32).reshape(count, context)
    if bos_id is not None:
        cut[:, 0] = bos_id
    return list(cut)


def scored_batch(tokens: Int32Array, num_groups: int) -> Batch:
    """One sequence, in the first blocks of every KV group, whose second half predicts (the last token nothing)."""
    length = len(tokens)
    table = np.arange(-(-length // BLOCK_SIZE), dtype=np.int32)[None]
    return Batch(
        tokens=tokens,
        positions=np.arange(length, dtype=np.int32),
        seq_starts=np.array([0, length], dtype=np.int32),
        context_lens=np.array([length], dtype=np.int32),
        block_tables=(table,) * num_groups,
        logit_rows=np.arange(length // 2, length - 1, dtype=np.int32),
    )


def negative_log_likelihood(logits: FloatArray, targets: Int32Array) -> npt.NDArray[np.float64]:
    """−log softmax(logits [R, V]) at targets [R]."""
    best = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - best).sum(axis=-1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return np.asarray(np.log(total) + best[:, 0] - chosen)


def score(model: LoadedModel, tokens: Int32Array, num_groups: int) -> Window:
    logits = run_batch(model, scored_batch(tokens, num_groups))
    nll = negative_log_likelihood(logits, tokens[len(tokens) // 2 + 1 :])
    return Window(nll, logits.argmax(axis=-1))


@contextmanager
def loaded(path: Path, backend: str, options: argparse.Namespace) -> Iterator[LoadedEngine]:
    settings = EngineSettings(
        model=str(path),
        backend=backend,  # type: ignore[arg-type]
        threads=options.threads,
        kv_type=options.kv_type,
        activation_type=options.activation_type if backend == "cpu" else "int16",
        max_batch_tokens=options.context,
        max_num_seqs=options.context,  # as many rows of logits
        kv_memory_bytes=KV_BYTES,
        prefix_caching=False,
    )
    engine = load_engine(settings)
    try:
        yield engine
    finally:
        engine.close()


def score_file(path: Path, backend: str, options: argparse.Namespace, chunks: int | None) -> list[Window]:
    """Windows of the text, scored through `backend`; the first `chunks` of them if that is not None."""
    with loaded(path, backend, options) as engine:
        ids = engine.tokenizer.encode(options.text.read_text(encoding="utf-8").removesuffix("\n"))
        bos = engine.tokenizer.bos_id if engine.tokenizer.encode("") else None
        cut = windows(ids, options.context, bos)[:chunks]
        if not cut:
            raise SystemExit(f"{options.text} has {len(ids)} tokens, less than one window of {options.context}")
        num_groups = len(engine.kv_plan.num_blocks)
        return [score(engine.model, tokens, num_groups) for tokens in cut]


def agreement(ours: Sequence[Window], reference: Sequence[Window]) -> float:
    """Share of positions whose likeliest next token is the reference's."""
    pairs = list(zip(ours, reference, strict=False))
    same = sum(int((a.likeliest == b.likeliest).sum()) for a, b in pairs)
    return same / sum(len(a.likeliest) for a, _ in pairs)


def measure(path: Path, options: argparse.Namespace, llama: Llama | None) -> dict[str, Any]:
    scored = score_file(path, options.backend, options, options.chunks)
    ours = Perplexity.of(np.concatenate([window.nll for window in scored]))
    row: dict[str, Any] = {"file": path.name, "perplexity": ours.value, "error": ours.error, "tokens": ours.tokens}
    if llama is not None:
        theirs = llama.perplexity(path, options.text, options.context, options.chunks)
        row |= {"llama_cpp": theirs, "difference": ours.value / theirs - 1}
    if options.agreement:
        reference = score_file(path, "reference", options, options.agreement)
        row["agreement"] = agreement(scored, reference)
    return row


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    columns = {
        "perplexity": ("Pagoda", "{:.4f}"),
        "error": ("±", "{:.4f}"),
        "llama_cpp": ("llama.cpp", "{:.4f}"),
        "difference": ("difference", "{:+.3%}"),
        "agreement": ("next tokens as the reference's", "{:.2%}"),
    }
    shown = {key: column for key, column in columns.items() if any(key in row for row in rows)}
    lines = ["| file | " + " | ".join(title for title, _ in shown.values()) + " |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        cells = [form.format(row[key]) if key in row else "" for key, (_, form) in shown.items()]
        lines.append(f"| {row['file']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def failures(rows: Sequence[dict[str, Any]], tolerance: float) -> list[str]:
    """What breaks the bars: perplexity further than `tolerance` from llama.cpp's, under 99 % agreement."""
    far = [
        f"{r['file']}: perplexity is {r['difference']:+.2%} off"
        for r in rows
        if abs(r.get("difference", 0)) > tolerance
    ]
    return far + [f"{r['file']}: agreement is {r['agreement']:.2%}" for r in rows if r.get("agreement", 1) < 0.99]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--text", type=Path, help="a file; by default plays from a package of the index")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--chunks", type=int, help="windows to score; all by default")
    parser.add_argument("--backend", choices=("cpu", "reference"), default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--activation-type", choices=("int16", "int8"), default="int16")
    parser.add_argument("--agreement", type=int, default=0, metavar="N", help="compare N windows with the reference")
    parser.add_argument("--tolerance", type=float, default=0.005, help="exit with 1 beyond this share off llama.cpp")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.text = options.text or prose_file()
    llama = Llama.find(options.threads or 1)
    rows = []
    for path in options.models:
        rows.append(measure(path, options, llama))
        print(rows[-1], file=sys.stderr)
    print(json.dumps(rows, indent=2) if options.json else markdown(rows))
    if broken := failures(rows, options.tolerance):
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
