"""What `pagoda deploy ray` is told besides the settings of the engine, the server and the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pagoda.deploy.scaling import Targets
from pagoda.errors import ConfigError
from pagoda.settings import Setting, Settings

SHARE_OF_SEQS = 0.75  # of the sequences that an engine may run at once, where nobody says how many it is to have


@dataclass(frozen=True, slots=True)
class RaySettings(Settings):
    """How many replicas, and what each is given."""

    table = "ray"

    replicas: Annotated[int, Setting("Engines; with --max-replicas, the fewest.", minimum=1)] = 1
    max_replicas: Annotated[
        int | None,
        Setting("The most engines: there are as many as their load asks for. By default always --replicas.", minimum=1),
    ] = None
    target_requests: Annotated[
        float | None,
        Setting(
            "With --max-replicas: requests that an engine is to have, running and waiting; by default three quarters "
            "of --max-num-seqs.",
            minimum=0.1,
        ),
    ] = None
    target_kv_usage: Annotated[
        float | None,
        Setting(
            "With --max-replicas: share of an engine's KV blocks that sequences are to hold; 0.8 by default.",
            minimum=0.01,
            maximum=1,
        ),
    ] = None
    upscale_delay: Annotated[
        float | None,
        Setting(
            "With --max-replicas: seconds for which more engines must have been asked for; 5 by default.", minimum=0
        ),
    ] = None
    downscale_delay: Annotated[
        float | None,
        Setting("With --max-replicas: the same for fewer engines; 300 by default.", minimum=0),
    ] = None
    fronts: Annotated[int, Setting("Gateways before them.", minimum=1)] = 1
    cpus: Annotated[float, Setting("CPUs that Ray sets aside for an engine.", minimum=0)] = 1.0
    gpus: Annotated[float, Setting("GPUs that Ray sets aside for an engine.", minimum=0)] = 0.0
    address: Annotated[str | None, Setting("Ray cluster to deploy to; by default the one here, or a new one.")] = None
    name: Annotated[str, Setting("Name of the application in Ray Serve.")] = "pagoda"

    def scaling(self, max_num_seqs: int) -> Scaling | None:
        """How the number of engines follows the load; None: it does not. Raises ConfigError for what contradicts."""
        given = {
            "target-requests": self.target_requests,
            "target-kv-usage": self.target_kv_usage,
            "upscale-delay": self.upscale_delay,
            "downscale-delay": self.downscale_delay,
        }
        if self.max_replicas is None:
            for name, value in given.items():
                if value is not None:
                    raise ConfigError(
                        f"--{name} {value:g} is of no use without --max-replicas: say how many engines there may be"
                    )
            return None
        if self.max_replicas < self.replicas:
            raise ConfigError(
                f"--max-replicas {self.max_replicas} is less than --replicas {self.replicas}, the fewest: raise it"
            )
        requests = SHARE_OF_SEQS * max_num_seqs if self.target_requests is None else self.target_requests
        kv_usage = 0.8 if self.target_kv_usage is None else self.target_kv_usage
        return Scaling(
            self.replicas,
            self.max_replicas,
            Targets(requests, kv_usage),
            5.0 if self.upscale_delay is None else self.upscale_delay,
            300.0 if self.downscale_delay is None else self.downscale_delay,
        )


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the number of engines follows their load."""

    fewest: int
    most: int
    targets: Targets
    upscale_delay: float  # seconds
    downscale_delay: float
