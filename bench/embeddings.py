"""Embeddings of Pagoda, sentence-transformers on torch and ONNX Runtime side by side: rounds of all of them in turn.

    python -m venv peers && peers/bin/pip install torch==2.13.0 sentence-transformers onnx onnxruntime
    PYTHONPATH=src python bench/embeddings.py --peers peers/bin/python [--texts 1000] [--rounds 3] [--threads 2]

Each computes the vectors of the same short texts with all-minilm-l6-v2, tokenizing included, batches of 32 sorted by
length for those that pad. Prints the median of each one's times, and of its ratio to Pagoda's in the same round; then
how far vectors lie from those of sentence-transformers, and one text's latency.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.config import EngineSettings
from pagoda.engine.embedder import DEFAULT_EMBEDDER, Embedder, load_embedder
from pagoda.sources import resolve
from pagoda.types import FloatArray

SUBJECTS = (
    "how do i reset my password account order refund shipping late return cancel change address invoice card payment "
    "failed why is the app slow on phone can you help me find a good place to eat near station what does this error "
    "mean when opening file best way learn python weather books about history difference between two words where are "
    "settings for dark mode enable disable notifications email not arriving does warranty cover water damage"
)


def short_texts(count: int) -> list[str]:
    """Questions of 4 to 18 words, the same in every run."""
    rng, words = random.Random(7), SUBJECTS.split()
    return [" ".join(rng.choices(words, k=rng.randint(4, 18))) + "?" for _ in range(count)]


class Peer:
    """A process of the peers' Python (`embeddings_peer.py`): a line in, a line of JSON out."""

    def __init__(self, python: str, kind: str, folder: Path, threads: int) -> None:
        command = [python, str(Path(__file__).with_name("embeddings_peer.py")), kind, str(folder), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(f"{kind}: {self._read()['version']}", flush=True)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a peer has ended; its error stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def seconds(self, texts: list[str]) -> float:
        return self.run(texts)[0]

    def run(self, texts: list[str], *, vectors: bool = False) -> tuple[float, FloatArray | None]:
        """→ (seconds, the vectors where they are wanted)"""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"texts": texts, "vectors": vectors}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        return answer["seconds"], np.array(answer["vectors"], np.float32) if vectors else None


def timed(embedder: Embedder, texts: list[str]) -> float:
    start = time.perf_counter()
    embedder.embed(texts)
    return time.perf_counter() - start


def loaded(name: str, threads: int) -> Embedder:
    weights, _, activations = name.partition(" ")
    settings = EngineSettings(
        model=DEFAULT_EMBEDDER,
        backend="cpu",
        threads=threads,
        encoder_weights="q8_0" if weights == "q8_0" else "file",
        activation_type="int8" if activations else "int16",
    )
    return load_embedder(settings=settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", help="Python with sentence-transformers and onnxruntime; without it, Pagoda alone")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    texts, folder = short_texts(args.texts), resolve(DEFAULT_EMBEDDER).path
    ours = {name: loaded(name, args.threads) for name in ("file", "q8_0", "q8_0 int8")}
    runs: dict[str, Callable[[list[str]], float]] = {
        f"pagoda {weights}": partial(timed, one) for weights, one in ours.items()
    }
    peers = {}
    if args.peers:
        peers = {
            kind: Peer(args.peers, kind, folder, args.threads) for kind in ("sentence-transformers", "onnxruntime")
        }
        runs |= {kind: peer.seconds for kind, peer in peers.items()}
    num_tokens = sum(len(ours["file"].tokenize(text).token_ids) for text in texts)
    print(f"{len(texts)} texts, {num_tokens} tokens, {args.threads} threads")
    for run in runs.values():
        run(texts[:64])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(args.rounds):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(runs[name](texts))
    owns = [f"pagoda {name}" for name in ours]
    print(f"| | seconds | texts a second | {' | '.join(owns)} |\n|{'---|' * (3 + len(owns))}")
    for name, seconds in times.items():
        ratios = [statistics.median(a / b for a, b in zip(seconds, times[own], strict=True)) for own in owns]
        middle = statistics.median(seconds)
        shown = " | ".join(f"{ratio:.2f} ×" for ratio in ratios)
        print(f"| {name} | {middle:.3f} | {len(texts) / middle:.0f} | {shown} |")
    if peers:
        some = texts[:500]
        _, want = peers["sentence-transformers"].run(some, vectors=True)
        assert want is not None
        for weights, one in ours.items():
            cosines = (one.embed(some).astype(np.float64) * want).sum(1)
            print(f"{weights}: least cosine {cosines.min():.7f}, mean {cosines.mean():.7f}")
    for name, run in runs.items():
        alone = sorted(run([text]) for text in texts[:50])
        print(f"one text, {name}: median {1000 * alone[25]:.2f} ms")


if __name__ == "__main__":
    main()
