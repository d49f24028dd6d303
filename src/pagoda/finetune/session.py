"""The part of a run that needs torch: model, adapter, trainer, and what comes of them. `run.py` is around it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

import pagoda
from pagoda.backends.cores import usable_cores
from pagoda.finetune.history import draw, losses
from pagoda.finetune.memory import give_back_memory, peak_memory
from pagoda.finetune.model.adapter import add_adapter, num_parameters, save_adapter, target_modules, write_json
from pagoda.finetune.model.build import FrozenModel, build_model
from pagoda.finetune.prepare import Prepared
from pagoda.finetune.progress import Watch
from pagoda.finetune.schedule import Schedule
from pagoda.finetune.trainer import EVAL_LOSS, AdapterTrainer
from pagoda.formats.checkpoint import Checkpoint
from pagoda.models.registry import family_of

Say = Callable[[str], None]
TRIM_LAYERS = 8  # after so many, free memory is given back: a trim costs half a layer's time
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Session:
    """A run that is ready to train."""

    prepared: Prepared
    schedule: Schedule
    model: FrozenModel
    adapted: Any
    trainer: AdapterTrainer
    watch: Watch
    best: Path
    alpha: float


def start(
    prepared: Prepared, folder: Path, *, line: Say, say: Say, progress: Callable[[str, int, int | None], None]
) -> Session:
    """Build the model with its adapter, and the trainer. Raises what `build_model` and `add_adapter` raise."""
    settings = prepared.settings
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(settings.threads or usable_cores())
    model = build_model(
        prepared.checkpoint,
        threads=settings.threads,
        activation_bits=int(settings.activation_type[3:]),
        progress=progress,
    )
    modules = target_modules(family_of(prepared.checkpoint), model, settings.targets)
    alpha = settings.alpha if settings.alpha is not None else 2.0 * settings.rank
    adapted = add_adapter(
        model,
        modules,
        rank=settings.rank,
        alpha=alpha,
        rslora=settings.rslora,
        dora=settings.dora,
        dropout=settings.dropout,
        base_name=prepared.model.name,
        seed=settings.seed,
    )
    for layer in model.causal.model.layers[TRIM_LAYERS - 1 :: TRIM_LAYERS]:
        layer.register_forward_hook(lambda *_: give_back_memory())
    if settings.checkpointing:
        model.causal.gradient_checkpointing_enable({"use_reentrant": False})
    schedule = prepared.schedule
    best = folder / "best"
    watch = Watch(line, say, best, settings.patience)
    trainer = AdapterTrainer(adapted, model.head, prepared.data, settings, schedule, folder / "checkpoints", [watch])
    watch.tokens = lambda: trainer.tokens_seen
    trained, all_parameters = num_parameters(adapted), model_parameters(prepared.checkpoint)
    say(
        f"{trained:,} parameters in adapters, {trained / all_parameters:.2%} of the model's {all_parameters:,}, on "
        f"{', '.join(modules)}; base {model.packed_bytes / 1e6:,.0f} MB"
    )
    return Session(prepared, schedule, model, adapted, trainer, watch, best, alpha)


def model_parameters(checkpoint: Checkpoint) -> int:
    """The numbers in all tensors of the model."""
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def train(session: Session, checkpoint: Path | None) -> dict[str, Any]:
    """Run to the end, from `checkpoint` where there is one. → figures for the record"""
    begun = time.monotonic()
    trainer = session.trainer
    if session.prepared.data.held_out and checkpoint is None:
        trainer.evaluate()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    log = trainer.state.log_history
    evaluations = losses(log, EVAL_LOSS)
    seconds = session.watch.seconds
    return {
        "steps": trainer.state.global_step,
        "parameters": num_parameters(session.adapted),
        "model_parameters": model_parameters(session.prepared.checkpoint),
        "alpha": session.alpha,
        "loss": losses(log, "loss"),
        "held_out_loss": evaluations,
        "best_held_out_loss": min((value for _, value in evaluations), default=None),
        "tokens": trainer.tokens_seen,
        "seconds": round(seconds, 3),
        "seconds_in_all": round(time.monotonic() - begun, 3),
        "tokens_per_second": round(trainer.tokens_seen / seconds, 1) if seconds else None,
        "peak_bytes": peak_memory(),
    }


def finish(session: Session, folder: Path, record: dict[str, Any]) -> None:
    """Write the adapter (the best one, where there were evaluations), the picture and the record."""
    if (session.best / "adapter_config.json").exists():
        for path in session.best.iterdir():
            shutil.copy2(path, folder / path.name)
    else:
        save_adapter(session.adapted, folder)
    draw(record["loss"], record["held_out_loss"], folder / "loss.png")
    write_json(folder / "pagoda_finetune.json", {**record, "versions": versions()})


def versions() -> dict[str, str]:
    found = {"pagoda": pagoda.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
