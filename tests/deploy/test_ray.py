"""What is told to Ray Serve, with the real one, where it is installed. bench/ray_serve.py runs the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from pagoda.deploy.ray import ScaleByLoad, app, autoscaling
from pagoda.deploy.scaling import Targets
from pagoda.deploy.settings import Scaling
from pagoda.errors import ConfigError


def context(loads: dict[str, tuple[float, float, float]], now: int, running: int | None = None) -> Any:
    """As the controller makes it: averages by name and replica, of those that have reported."""
    names = ("running", "waiting", "kv_usage")
    metrics = {name: {id: load[place] for id, load in loads.items()} for place, name in enumerate(names)}
    replicas = [*loads, *(f"silent-{number}" for number in range((running or len(loads)) - len(loads)))]
    return SimpleNamespace(aggregated_metrics=metrics, running_replicas=replicas, target_num_replicas=now)


def test_the_policy_reads_what_replicas_report() -> None:
    policy = ScaleByLoad(requests=8, kv_usage=0.8)
    assert policy(context({"a": (8, 8, 0.1)}, 1)) == (2, {})
    assert policy(context({"a": (8, 8, 0.1), "b": (8, 8, 0.1)}, 2)) == (4, {})
    assert policy(context({"a": (1, 0, 0.1)}, 3, running=3)) == (1, {})
    assert policy(context({}, 2, running=2)) == (2, {})  # none has reported yet
    assert policy(SimpleNamespace(aggregated_metrics=None, running_replicas=[], target_num_replicas=2)) == (2, {})


def test_ray_makes_the_policy_of_what_it_is_told() -> None:
    """As its controller does it: pickled, and made anew."""
    config = autoscaling(Scaling(1, 4, Targets(6, 0.5), 2.0, 60.0))
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (2.0, 60.0)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert policy(context({"a": (6, 6, 0.1)}, 1)) == (2, {})
    assert policy(context({"a": (2, 0, 0.6)}, 1)) == (2, {})


def test_settings_that_contradict_each_other_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="--max-replicas 1 is less than --replicas 2"):
        app({"replicas": 2, "max-replicas": 1})
    with pytest.raises(ConfigError, match="'replica' is no setting"):
        app({"replica": 2})
