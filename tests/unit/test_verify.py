"""What verifying rests on: memory without the model's file, a clock that ends in time, steps that add up."""

import mmap
from pathlib import Path

import pytest

from pagoda.backends.cores import IS_MACOS
from pagoda.benchmark.resident import mapped_bytes
from pagoda.benchmark.verify import Clock, Prediction, Verified
from pagoda.plan.measured.probes import Probe


@pytest.mark.skipif(IS_MACOS, reason="/proc is Linux's")
def test_pages_of_a_mapped_file_are_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped.find(b"x") == -1  # which looks at every page
        assert mapped_bytes(path) == mapped_bytes(tmp_path) == 1 << 20
        assert mapped_bytes(tmp_path / "other.bin") == 0


def test_a_clock_leaves_no_room_for_a_round_as_long_as_the_longest() -> None:
    times = iter([100.0, 103.0, 107.0, 108.0])
    clock = Clock(112.0, lambda: next(times))
    assert clock.has_room()  # the first round took 3
    assert clock.has_room()  # this one 4, and 111 is in time
    assert clock.has_room()  # 1, but the longest counts: 112 is just in time
    times = iter([100.0, 103.0, 107.5])
    clock = Clock(111.0, lambda: next(times))
    assert clock.has_room()
    assert not clock.has_room()


def test_a_busy_machine_is_told() -> None:
    points = [Prediction("tpot", 1, 128, 0.9, 1.0)]
    assert points[0].error == pytest.approx(-0.1)
    assert not Verified(points, 0.5).is_quiet
    assert Verified(points, 0.95).is_quiet
    assert Verified(points, None).is_quiet  # nothing was timed


def test_stages_add_up_to_steps_that_were_taken() -> None:
    """Each step is disturbed in one of its stages, each time another: no step took less than 5."""
    probe = Probe.__new__(Probe)
    key = (1, 1, 1, 1)
    probe._kinds = {key: ["a", "b", "c", "d"]}
    probe._runs = {key: [[2.0 if stage == run % 4 else 1.0 for stage in range(4)] for run in range(16)]}
    assert sum(seconds for _, seconds in probe.stages(key)) == pytest.approx(5.0)
