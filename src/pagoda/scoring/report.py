"""How much worse is it: models that were made of one original, each beside it on a text.

>>> from pagoda.scoring.report import compare
>>> report = compare(["model-f16.gguf", "model-q4_k_m.gguf", "model-gptq"])
>>> [(row.name, row.perplexity, row.kld) for row in report.rows]

Memory is bounded: one model is loaded at a time, and of the original's predictions as many windows are kept as fit in
an eighth of what memory is available; longer texts take several rounds over the models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.engine.load import LoadedEngine
from pagoda.engine.memory import available_memory
from pagoda.errors import ConfigError
from pagoda.scoring.score import KeptPredictions, ScoreTally, predictions, scoring, speeds, windows_of
from pagoda.scoring.self_text import HELD_OUT_SEED, NAMES, plain_text, self_documents
from pagoda.sources import resolve
from pagoda.types import FloatArray, Int32Array

CONTEXT = 512
WINDOWS = 16

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Quality:
    """One model on the text. Divergence and agreement are None for the original itself; speeds where not measured."""

    name: str
    file_bytes: int
    weights: int
    weight_bytes: int  # of its tensors
    perplexity: float
    perplexity_error: float  # standard error
    kld: float | None = None  # mean KL(original || this), in nats
    kld_p99: float | None = None
    agreement: float | None = None  # share of tokens whose likeliest is the original's
    prefill_per_second: float | None = None
    decode_per_second: float | None = None

    @property
    def bytes_per_weight(self) -> float:
        return self.weight_bytes / max(self.weights, 1)


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` in the order asked for, the original among them or first."""

    original: str
    text: str
    text_sha256: str
    windows: int
    context: int
    tokens: int  # predicted
    rows: tuple[Quality, ...]

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "bytes_per_weight": row.bytes_per_weight} for row in self.rows]
        return {**asdict(self), "rows": rows}


def measure(
    candidate: Path | str,
    original: Path | str,
    text: str = "self",
    *,
    windows: int = WINDOWS,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Quality:
    """How much worse `candidate` is than `original`; raises what `compare` raises."""
    report = compare([candidate], original, text, windows=windows, threads=threads, speed=False, progress=progress)
    return report.rows[-1]


def compare(
    models: Sequence[Path | str],
    against: Path | str | None = None,
    text: str = "self",
    *,
    windows: int = WINDOWS,
    context: int = CONTEXT,
    threads: int = 0,
    speed: bool = True,
    adapter: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Score each model on `text` against `against`, by default the first of them.

    adapter: of the original, which it is scored with.

    text: a file's name, or self: text that the original writes, other than what calibrates.

    Windows are of `context` tokens, or of as many as the original was made for if these are fewer.

    Raises ConfigError for a text that is unreadable or shorter than a window, and for models whose tokenizers differ;
    what `load_engine` raises for models.
    """
    names = list(dict.fromkeys(str(model) for model in models))
    original = str(against) if against is not None else names[0]
    if original not in names:
        names.insert(0, original)
    if text in NAMES:
        path = resolve(original, progress=progress).path
        documents = self_documents(path, windows * context, HELD_OUT_SEED, threads=threads, progress=progress)
        source, content = "text that the original wrote", plain_text(documents)
    else:
        source, content = read_text(Path(text))
    run = _Comparison(original, content, source, context, windows, threads, speed, adapter, progress)
    candidates = [name for name in names if name != original]
    start = 0
    while not run.windows or start < len(run.windows):
        start += run.round(start, candidates)
    digest = hashlib.sha256(content.encode()).hexdigest()
    rows = tuple(run.quality(name) for name in names)
    return Report(run.facts[original]["name"], source, digest, len(run.windows), run.context, run.num_tokens, rows)


def read_text(path: Path) -> tuple[str, str]:
    """→ (what to call the file's text, the text). ConfigError if it cannot be read."""
    try:
        return path.name, path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text: {path} cannot be read as UTF-8 text: {error}") from error


class _Comparison:
    """Scores an original and its candidates round by round; see `compare` for the arguments."""

    def __init__(
        self,
        original: str,
        content: str,
        source: str,
        context: int,
        max_windows: int,
        threads: int,
        speed: bool,
        adapter: Path | None,
        progress: Progress,
    ) -> None:
        self.original, self.content, self.source = original, content, source
        self.adapter = adapter
        self.context, self.max_windows, self.threads, self.speed = context, max_windows, threads, speed
        self.progress = progress
        self.windows: list[Int32Array] = []  # known once the original is loaded
        self.tallies: dict[str, ScoreTally] = {}
        self.facts: dict[str, dict[str, Any]] = {}

    @property
    def num_tokens(self) -> int:
        return sum(len(nll) for nll in self.tallies[self.original].nll)

    def round(self, start: int, candidates: Sequence[str]) -> int:
        """Score all models on the windows from `start` on, as many as fit in memory. → how many"""
        kept: list[KeptPredictions] = []
        with scoring(self.original, self.context, self.threads, self.adapter) as engine:
            if not self.windows:
                self.context = min(self.context, engine.max_context)
                self.windows = self._cut(engine)
            part = self.windows[start : start + self._capacity(engine)]
            for logits in self._score(self.original, engine, part, start):
                self.tallies[self.original].add(part[len(kept)], logits, None)
                kept.append(KeptPredictions.of(logits))
        for name in candidates:
            with scoring(name, self.context, self.threads) as engine:
                for i, logits in enumerate(self._score(name, engine, part, start)):
                    self.tallies[name].add(part[i], logits, kept[i])
        return len(part)

    def _score(self, name: str, engine: LoadedEngine, part: Sequence[Int32Array], start: int) -> Iterator[FloatArray]:
        if name not in self.facts:
            self._check_tokenizer(engine)
            self.tallies[name] = ScoreTally()
            self.facts[name] = facts_of(engine, self.windows[0] if self.speed else None)
        for i, window in enumerate(part):
            yield predictions(engine, window)
            self.progress(f"scoring {self.facts[name]['name']}", start + i + 1, len(self.windows))

    def _cut(self, engine: LoadedEngine) -> list[Int32Array]:
        windows = windows_of(engine, self.content, self.context)[: self.max_windows]
        if not windows:
            raise ConfigError(f"--text: {self.source} is shorter than one window of {self.context} tokens")
        return windows

    def _capacity(self, engine: LoadedEngine) -> int:
        window_bytes = 2 * (self.context // 2) * engine.core.vocab_size
        return max(kept_bytes() // window_bytes, 1)

    def _check_tokenizer(self, engine: LoadedEngine) -> None:
        """ConfigError if the model cuts the text into other tokens than the original: divergence compares the same
        tokens."""
        cut = windows_of(engine, self.content, self.context)[: len(self.windows)]
        if len(cut) != len(self.windows) or not np.array_equal(cut, self.windows):
            raise ConfigError(
                f"{engine.model_name} cuts the text into other tokens than {self.original}: "
                "only models that were made of one original can be compared"
            )

    def quality(self, name: str) -> Quality:
        tally = self.tallies[name]
        nll = np.concatenate(tally.nll)
        perplexity = math.exp(nll.mean())
        error = perplexity * float(nll.std()) / math.sqrt(max(len(nll) - 1, 1))
        quality = Quality(perplexity=perplexity, perplexity_error=error, **self.facts[name])
        if not tally.divergence:
            return quality
        divergence = np.concatenate(tally.divergence)
        return replace(
            quality,
            kld=float(divergence.mean()),
            kld_p99=float(np.quantile(divergence, 0.99)),
            agreement=float(np.concatenate(tally.agreed).mean()),
        )


def kept_bytes() -> int:
    """Bytes of memory that the original's predictions may take."""
    return max(512 * 2**20, available_memory() // 8)


def facts_of(engine: LoadedEngine, window: Int32Array | None) -> dict[str, Any]:
    """What a row says besides quality; speeds are measured on `window` if there is one."""
    tensors = engine.checkpoint.tensors.values()
    facts: dict[str, Any] = {
        "name": engine.model_name,
        "file_bytes": engine.checkpoint.file_bytes,
        "weights": sum(math.prod(tensor.shape) for tensor in tensors),
        "weight_bytes": sum(tensor.num_bytes for tensor in tensors),
    }
    if window is not None:
        facts["prefill_per_second"], facts["decode_per_second"] = speeds(engine, window)
    return facts
