"""A fine-tuning run from start to end: files → examples → adapter folder. What was begun is gone on with.

The folder holds, when the run is done, the adapter as peft writes it, `pagoda_finetune.json` (settings, data hashes,
versions, figures) and loss.png. Until then it holds `checkpoints/` and `best/`, and no adapter.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pagoda.config import limit_openmp_spinning
from pagoda.errors import CapacityError, ConfigError, PagodaError
from pagoda.finetune.clock import clock
from pagoda.finetune.imports import without_unused
from pagoda.finetune.predict import Prediction, measure_rates, predict
from pagoda.finetune.prepare import Prepared, Progress
from pagoda.models.registry import family_of

Say = Callable[[str], None]

MARK, CHECKPOINTS, BEST = "run.json", "checkpoints", "best"
RECORD = "pagoda_finetune.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate")
FULL = 1 << 20  # bytes of a disk that is called full
NOT_OF_THE_RESULT = ("threads", "show", "force", "save_every")


def check_packages() -> None:
    """ConfigError that says what to install."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not installed, which training needs: pip install 'pagoda-llm[finetune]'"
        )


def finetune(
    prepared: Prepared, folder: Path, *, line: Say, say: Say, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Train an adapter into `folder`, → its record, as `pagoda_finetune.json` says it.

    Killed by whatever, the same call goes on from the last checkpoint, to the losses that it would have come to.
    ConfigError if the folder holds an adapter or another run; CapacityError for a full disk or memory.
    """
    check_packages()
    _open_folder(prepared, folder, say)
    try:
        return _train(prepared, folder, line, say, progress)
    except PagodaError:
        raise
    except Exception as error:
        explained = _explained(error, folder)
        if explained is None:
            raise
        raise explained from error


def _train(prepared: Prepared, folder: Path, line: Say, say: Say, progress: Progress) -> dict[str, Any]:
    limit_openmp_spinning()
    settings = prepared.settings
    with without_unused(), warnings.catch_warnings():
        from pagoda.finetune import session  # imports torch

        warnings.filterwarnings("ignore", module="torch|transformers|accelerate|peft")
        predicted = predict(prepared, measure_rates(prepared))
        made = session.start(prepared, folder, line=line, say=say, progress=progress)
        result = session.train(made, last_checkpoint(folder))
    record = {
        "base": {"name": prepared.model.name, "path": str(prepared.model.path), "sha256": prepared.model.sha256},
        "settings": asdict(settings),
        "data": {"sha256": prepared.data.digests, "counts": asdict(prepared.data.counts)},
        "examples": {"trained": len(prepared.data.train), "held_out": len(prepared.data.held_out)},
        "predicted": predicted.to_json(),
        **result,
    }
    say(_compared(predicted, result))
    session.finish(made, folder, record)
    for name in (CHECKPOINTS, BEST):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / MARK).unlink(missing_ok=True)
    return record


def _compared(predicted: Prediction, result: dict[str, Any]) -> str:
    """How far off the prediction was. Of a run that went on, the time is of what this process trained."""
    seconds = predicted.seconds * result["tokens"] / max(predicted.tokens, 1)
    return (
        f"took {clock(result['seconds'])}, predicted {clock(seconds)}; "
        f"{result['peak_bytes'] / 1e6:,.0f} MB, predicted {predicted.memory.total / 1e6:,.0f}"
    )


def _open_folder(prepared: Prepared, folder: Path, say: Say) -> None:
    mark = _fingerprint(prepared)
    if prepared.settings.force and folder.exists():
        if not any((folder / name).exists() for name in (RECORD, MARK, "adapter_config.json")):
            raise ConfigError(f"{folder} holds no adapter, so --force does not replace it; name another with -o")
        shutil.rmtree(folder)
    if (folder / RECORD).exists() or (folder / "adapter_config.json").exists():
        raise ConfigError(f"{folder} holds an adapter; name another with -o, or replace it with --force")
    found = None
    with suppress(OSError, ValueError):
        found = json.loads((folder / MARK).read_text())
    if found is not None and found != mark:
        raise ConfigError(f"{folder} holds an unfinished run with other settings, data or model; --force starts over")
    if found == mark:
        say(f"going on with the run in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(json.dumps(mark))


def _fingerprint(prepared: Prepared) -> dict[str, str]:
    """Equal only for runs that come to the same losses."""
    settings = {key: value for key, value in asdict(prepared.settings).items() if key not in NOT_OF_THE_RESULT}
    shape = (prepared.model.path.stat().st_size, str(prepared.model.path), family_of(prepared.checkpoint).name)
    text = json.dumps([settings, prepared.data.digests, shape], default=str)
    return {"digest": hashlib.sha256(text.encode()).hexdigest()}


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole one of the run in `folder`; None: there is none. One without a readable state, which is written
    last, was cut off, and is removed."""
    found = []
    for path in (folder / CHECKPOINTS).glob("checkpoint-*"):
        with suppress(OSError, ValueError):
            found.append((int(json.loads((path / "trainer_state.json").read_text())["global_step"]), path))
            continue
        shutil.rmtree(path)
    return max(found)[1] if found else None


def _explained(error: Exception, folder: Path) -> PagodaError | None:
    """What users can do about it; None for what is our own mistake. torch and safetensors wrap what the OS says."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or shutil.disk_usage(folder).free < FULL:
        return CapacityError(f"the disk that holds {folder} is full; make room, and the same command goes on")
    if isinstance(error, OSError):
        return ConfigError(f"{error.filename or folder}: {error.strerror or error}")
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return CapacityError("memory ran out; take a smaller --micro-tokens, or --checkpointing")
    return None
