"""Measures rates once for a kind of model, in some seconds, and remembers them in the cache folder.

Rates that must be doubted are given out with the reason, and not remembered: the next call measures again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pagoda
import pagoda._native as native
from pagoda.config import cache_dir
from pagoda.hardware.host import read_hardware
from pagoda.models.layers import Decoder
from pagoda.plan.measured.probes import SWEEPS, Prober
from pagoda.plan.measured.rates import Rates
from pagoda.plan.measured.setup import Setup

MOST_SWEEPS = 5
METHOD = 4  # of measuring: rates of another one are not comparable

Say = Callable[[str], None]


def remembered_rates(key: str, setup: Setup) -> Rates | None:
    """What an earlier run measured for the model and format that `key` names."""
    try:
        return Rates.from_json(json.loads(_path(key, setup).read_text()))
    except (OSError, ValueError, KeyError, TypeError):  # none, damaged, or of another version
        return None


def measured_rates(
    model: Decoder,
    counts: Mapping[str, int],
    key: str,
    setup: Setup,
    bandwidth: float,
    *,
    say: Say = lambda line: None,
) -> Rates:
    """Measured now, and remembered if nothing is doubted. `counts`: layers of each signature in the whole model;
    `bandwidth`: bytes/s that memory gives at most."""
    prober = Prober(model, counts, setup)
    doubts = sweep_until_believed(prober, bandwidth, say)
    rates = replace(prober.rates(), doubts=doubts)
    prober.close()
    if not doubts:
        _remember(_path(key, setup), rates)
    return rates


class Sweeps(Protocol):
    """The part of `Prober` that `sweep_until_believed` needs."""

    def sweep(self) -> None: ...

    def doubts(self, bandwidth: float) -> tuple[str, ...]: ...


def sweep_until_believed(prober: Sweeps, bandwidth: float, say: Say) -> tuple[str, ...]:
    """SWEEPS sweeps, and up to MOST_SWEEPS as long as there are doubts. → those that are left"""
    found: tuple[str, ...] = ()
    for number in range(1, MOST_SWEEPS + 1):
        say(f"measuring the kernels on this machine, once for this kind of model: sweep {number}")
        prober.sweep()
        found = prober.doubts(bandwidth)
        if number >= SWEEPS and not found:
            break
    return found


def _remember(path: Path, rates: Rates) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(rates.to_json()))
    partial.replace(path)


def _path(key: str, setup: Setup) -> Path:
    return cache_dir() / "plan" / f"{_digest(key, setup)}.json"


def _digest(key: str, setup: Setup) -> str:
    """Changes with the machine, the version, the built extension, the model's layers and the setup."""
    built = Path(native.__file__).stat()
    facts = [pagoda.__version__, built.st_size, built.st_mtime_ns, platform.node(), read_hardware().cpu, key, METHOD]
    facts += [setup.threads, setup.isa, setup.kv_type, setup.activation_bits]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
