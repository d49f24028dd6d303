"""Which judge an evaluation asks: the flags that choose it, and how it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import orjson

from pagoda.cli.endpoint import open_endpoints, served_model
from pagoda.cli.options import ADAPTERS
from pagoda.cli.progress import download_progress
from pagoda.config import EngineSettings, cache_dir
from pagoda.errors import FormatError
from pagoda.evals.calibration import Calibration
from pagoda.evals.judge import Judge, ResponseCache
from pagoda.settings import Setting, Settings
from pagoda.sources import resolve
from pagoda.sources.files import sha256_of

NOT_OF_JUDGES = ("model", *ADAPTERS)  # of the engine's settings: --judge names the model


@dataclass(frozen=True, slots=True)
class JudgeSettings(Settings):
    """Flags of the verbs that ask a judge."""

    table = "eval-judge"

    judge: Annotated[
        str, Setting("Model that judges: loaded here (alias, path, hf:…), or the URL of an OpenAI-compatible server.")
    ] = "smollm2-135m"
    judge_model: Annotated[str | None, Setting("The judge's name at its server. [default: its first]")] = None
    judge_key: Annotated[str | None, Setting("API key of the judge's server.")] = None
    calibration: Annotated[Path | None, Setting("What `pagoda eval calibrate` found for this judge.")] = None
    verdicts: Annotated[
        Literal["expected", "sampled"],
        Setting("expected: the probability of yes; sampled: the likelier word, which loses most of what is measured."),
    ] = "expected"
    claims: Annotated[
        Literal["judge", "sentences"], Setting("Who splits answers of several sentences into claims.")
    ] = "judge"
    prior: Annotated[
        bool, Setting("Subtract what the judge believes without the passages: a question more a claim.")
    ] = True
    words: Annotated[
        bool, Setting("Count how many of a claim's words stand together in a passage, beside what the judge says.")
    ] = True
    embedding_model: Annotated[str | None, Setting("Model of the judge's server for likeness of texts.")] = None
    concurrency: Annotated[int, Setting("Questions asked at once.", minimum=1)] = 16
    judge_cache: Annotated[bool, Setting("Keep the judge's answers on disk: judging again costs nothing.")] = True


@dataclass(frozen=True, slots=True)
class OpenJudge:
    """A judge ready to be asked, and what tells it from others."""

    judge: Judge
    identity: str


@contextmanager
def open_judge(settings: JudgeSettings, engine: EngineSettings) -> Iterator[OpenJudge]:
    """Load the judge, or connect to it. Raises what loading raises."""
    remote = settings.judge if "://" in settings.judge else None
    model = served_model(remote, settings.judge_key, settings.judge_model or "")
    name = f"{model} at {remote}" if remote else _describe(settings.judge)
    calibration = read_calibration(settings.calibration) if settings.calibration else None
    shown = f"{calibration.slope:.4g} and {calibration.offset:.4g}" if calibration else "uncalibrated"
    identity = f"{name}, {shown}, claims by {settings.claims}, prior {'on' if settings.prior else 'off'}"
    identity += f", words {'on' if settings.words else 'off'}"
    with open_endpoints(replace(engine, model=settings.judge), remote, settings.judge_key) as open_endpoint:
        cache = ResponseCache(cache_dir() / "judge.sqlite", name) if settings.judge_cache else None
        judge = Judge(
            open_endpoint,
            model,
            calibration,
            sampled=settings.verdicts == "sampled",
            prior=settings.prior,
            words=settings.words,
            split_by_judge=settings.claims == "judge",
            concurrency=settings.concurrency,
            cache=cache,
            embedding_model=settings.embedding_model,
        )
        try:
            yield OpenJudge(judge, identity)
        finally:
            judge.close()
            if cache is not None:
                cache.close()


def _describe(model: str) -> str:
    """A local judge by its name and content: a file of the same name may hold another model."""
    with download_progress() as progress:
        local = resolve(model, progress=progress)
    digest = local.sha256
    if digest is None and local.path.is_file():
        digest = sha256_of(local.path)
    return f"{local.name} {digest[:12] if digest else ''}".strip()


def read_calibration(path: Path) -> Calibration:
    """What `pagoda eval calibrate -o` wrote. Raises FormatError."""
    try:
        record = orjson.loads(path.read_bytes())
        return Calibration(float(record["slope"]), float(record["offset"]))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"is not a calibration of `pagoda eval calibrate`: {error}", path=str(path)) from None
