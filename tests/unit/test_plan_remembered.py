"""Rates of the kernels: swept until they can be believed, remembered only then. The prober is made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from measurements import RATES
from pagoda.plan.measured import remembered
from pagoda.plan.measured.probes import SWEEPS
from pagoda.plan.measured.remembered import MOST_SWEEPS, measured_rates, remembered_rates, sweep_until_believed
from pagoda.plan.measured.setup import setup_here

BUSY = ("other programs took 70% of the CPU time",)
QUIET = ()


class MadeUp:
    """Doubts after each sweep; the last go on for ever."""

    def __init__(self, *doubts: tuple[str, ...]) -> None:
        self.left = list(doubts)
        self.num_sweeps = 0

    def sweep(self) -> None:
        self.num_sweeps += 1

    def doubts(self, bandwidth: float) -> tuple[str, ...]:
        assert bandwidth == 30e9
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def rates(self) -> Any:
        return RATES

    def close(self) -> None: ...


def ignore(line: str) -> None: ...


@pytest.mark.parametrize(
    ("doubts", "sweeps", "left"),
    [
        ([QUIET], SWEEPS, QUIET),
        ([BUSY, BUSY, QUIET], SWEEPS, QUIET),
        ([BUSY, BUSY, BUSY, QUIET], SWEEPS + 1, QUIET),
        ([BUSY], MOST_SWEEPS, BUSY),
    ],
)
def test_sweeps_go_on_while_there_are_doubts(doubts: list[tuple[str, ...]], sweeps: int, left: tuple[str, ...]) -> None:
    prober = MadeUp(*doubts)
    assert sweep_until_believed(prober, 30e9, ignore) == left
    assert prober.num_sweeps == sweeps


@pytest.mark.parametrize("doubts", [QUIET, BUSY])
def test_only_what_can_be_believed_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubts: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path))
    monkeypatch.setattr(remembered, "Prober", lambda *_: MadeUp(doubts))
    setup = setup_here("f16")
    found = measured_rates(None, {}, "key", setup, 30e9)  # type: ignore[arg-type]
    assert found == replace(RATES, doubts=doubts)
    kept = remembered_rates("key", setup)
    assert (kept is None) == bool(doubts)
    assert remembered_rates("another key", setup) is None
