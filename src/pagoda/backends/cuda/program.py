"""What a forward pass was compiled to (`compile.py`): actions, each of which computes some values of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pagoda.backends.cuda.adapters import Site
from pagoda.backends.cuda.metadata import Angles, Step
from pagoda.backends.cuda.states import Caches
from pagoda.backends.specs import RopeSpec
from pagoda.backends.trace import Node


@dataclass(slots=True)
class Run:
    """One pass: the step, and the values that were computed so far."""

    step: Step
    caches: Caches
    values: dict[Node, torch.Tensor]


Action = Callable[[Run], None]


@dataclass(frozen=True, slots=True)
class Results:
    """What a pass ends in; None: the model has no such end, or nobody asked."""

    logits: torch.Tensor | None  # [R, V] float32
    hidden_states: torch.Tensor | None  # [R2, E] float32


class Program:
    """What `ProgramCompiler` made: call it with a step.

    actions: each with the values that nobody reads after it. ends: by op, the values that are the results.
    sites: what adapters may add to, by the weight's name.
    """

    def __init__(
        self,
        actions: list[tuple[Action, list[Node]]],
        ropes: list[RopeSpec],
        ends: Mapping[str, Node],
        sites: Mapping[str, Site],
        device: torch.device,
    ) -> None:
        self._actions = actions
        self.ends = ends
        self.sites = sites
        self._ropes = [
            (torch.from_numpy(spec.inv_freq.astype(np.float64)).to(device), float(spec.scale)) for spec in ropes
        ]

    def __call__(self, step: Step, caches: Caches) -> Results:
        run = Run(step.with_angles(self._angles(step)), caches, {})
        for act, unread in self._actions:
            act(run)
            for value in unread:
                del run.values[value]
        logits, hidden_states = (self.ends.get(op) for op in ("logits", "hidden_states"))
        return Results(
            None if logits is None else run.values.get(logits),
            None if hidden_states is None else run.values.get(hidden_states),
        )

    def _angles(self, step: Step) -> tuple[Angles, ...]:
        """In float64, as the reference: positions are large, and float32 would turn them by the wrong angle."""
        position = step.positions.to(torch.float64)[:, None]
        angles = [(position * frequency, scale) for frequency, scale in self._ropes]
        return tuple(((a.cos() * scale).to(torch.float32), (a.sin() * scale).to(torch.float32)) for a, scale in angles)
