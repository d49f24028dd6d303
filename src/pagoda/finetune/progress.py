"""What a user sees of a run: a line with loss, speed, time left and memory; and the best adapter kept as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pagoda.finetune.clock import clock
from pagoda.finetune.history import evaluations_since_best, losses
from pagoda.finetune.memory import peak_memory
from pagoda.finetune.model.adapter import save_adapter
from pagoda.finetune.trainer import EVAL_LOSS

Say = Callable[[str], None]


class Watch(TrainerCallback):
    """Tells of each step through `line`, which is drawn over, and of evaluations through `say`."""

    def __init__(self, line: Say, say: Say, best: Path, patience: int | None) -> None:
        self._line = line
        self._say = say
        self._best = best
        self._patience = patience
        self._start = 0.0
        self._first_step = 0
        self.tokens: Callable[[], int] = lambda: 0
        self.seconds = 0.0  # of training, evaluations not counted
        self._step_start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start, self._first_step = time.monotonic(), state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.monotonic() - self._step_start

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        done = state.global_step - self._first_step
        left = (time.monotonic() - self._start) / max(done, 1) * (state.max_steps - state.global_step)
        self._line(
            f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
            f"{self.tokens() / max(self.seconds, 1e-9):,.0f} tokens/s  {clock(left)} left  "
            f"{peak_memory() / 1e6:,.0f} MB"
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        evaluations = losses(state.log_history, EVAL_LOSS)
        since = evaluations_since_best(evaluations)
        note = " (best so far)" if since == 0 else f" (best: {min(value for _, value in evaluations):.4f})"
        self._say(f"step {state.global_step}: held-out loss {metrics[EVAL_LOSS]:.4f}{note}")
        if since == 0 and state.global_step > 0:
            save_adapter(kwargs["model"], self._best)
        if self._patience is not None and since >= self._patience:
            self._say(f"no better evaluation for {since} times: stopping")
            control.should_training_stop = True
