"""What `pagoda deploy ray` is told besides the settings of the engine, the server and the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class RaySettings(Settings):
    """How many replicas, and what each is given."""

    table = "ray"

    replicas: Annotated[int, Setting("Engines.", minimum=1)] = 1
    fronts: Annotated[int, Setting("Gateways before them.", minimum=1)] = 1
    cpus: Annotated[float, Setting("CPUs that Ray sets aside for an engine.", minimum=0)] = 1.0
    gpus: Annotated[float, Setting("GPUs that Ray sets aside for an engine.", minimum=0)] = 0.0
    address: Annotated[str | None, Setting("Ray cluster to deploy to; by default the one here, or a new one.")] = None
    name: Annotated[str, Setting("Name of the application in Ray Serve.")] = "pagoda"
