"""How many steps a run has, and when it evaluates and saves."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from pagoda.finetune.settings import FinetuneSettings

EVALUATIONS = 10  # in a run, where nobody says how often


@dataclass(frozen=True, slots=True)
class Schedule:
    steps: int
    warmup: int
    eval_every: int
    save_every: int


def make_schedule(settings: FinetuneSettings, num_examples: int) -> Schedule:
    """Steps of `settings.batch` examples, the last of an epoch perhaps of fewer."""
    steps = settings.max_steps or max(ceil(settings.epochs * ceil(num_examples / settings.batch)), 1)
    every = settings.eval_every or ceil(steps / EVALUATIONS)
    return Schedule(steps, round(settings.warmup * steps), every, settings.save_every or every)
