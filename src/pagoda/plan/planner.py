"""From settings to plans: every device with every format that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagoda.errors import ConfigError
from pagoda.hardware.devices import device
from pagoda.plan.model.models import find_shape
from pagoda.plan.model.shapes import ModelShape
from pagoda.plan.model.weights import default_format
from pagoda.plan.output.report import model_json, plan_json, request_json
from pagoda.plan.settings import PlanSettings, check
from pagoda.plan.target import Target, make_target
from pagoda.sources import Progress

MOST_PLANS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: a target for each device and format, in the order in which they were named."""

    shape: ModelShape
    settings: PlanSettings
    targets: tuple[Target, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, units in the names; `pagoda plan --json` prints it."""
        return {
            "model": model_json(self.shape),
            "request": request_json(self.settings),
            "plans": [plan_json(target) for target in self.targets],
        }


def make_plan(
    settings: PlanSettings,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plan as `settings` say. Devices named `this` are measured, once; `say` hears of it.

    ConfigError for settings that make no sense; SourceError or FormatError for a model that cannot be found or read.
    """
    check(settings)
    names = [(on, format) for on in settings.on for format in (settings.format or (None,))]
    if len(names) > MOST_PLANS:
        raise ConfigError(f"{len(names)} plans at once are too many; name at most {MOST_PLANS} devices and formats")
    shape = find_shape(settings.model, progress=progress)
    targets = []
    for on, format in names:
        found = device(on)
        targets.append(make_target(shape, found, format or default_format(shape, found.kind), settings, say=say))
    return Plan(shape, settings, tuple(targets))


def plan(model: str, **options: Any) -> Plan:
    """`make_plan` with settings by name: plan("llama-3-8b", on="a100-80gb,rtx4090", format="fp16", tpot=50).

    `on`, `format` and `batch` take one value, several by commas, or a sequence.
    """
    known = set(PlanSettings.__dataclass_fields__)
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = {"model": model}
    for name, value in options.items():
        values[name] = _several(value) if name in ("on", "format") else value
    return make_plan(PlanSettings(**values))


def _several(value: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)
