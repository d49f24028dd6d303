"""The device table: every row is whole, and unknown names get a hint."""

import pytest

from pagoda.errors import ConfigError
from pagoda.hardware.device import FLOP_TYPES, KINDS, Device
from pagoda.hardware.devices import device, devices


@pytest.mark.parametrize("row", devices(), ids=lambda row: row.id)
def test_rows_are_whole(row: Device) -> None:
    assert row.kind in KINDS
    assert row.memory_bytes > 0
    assert row.bandwidth_bytes_s > 1e9
    assert set(row.flops) <= set(FLOP_TYPES)
    assert 0 < row.efficiency.decode_bandwidth <= 1
    assert 0 < row.efficiency.prefill_compute <= 1
    assert {"memory_bytes", "bandwidth_bytes_s", "flops"} <= set(row.sources)


def test_unknown_device_names_what_is_near() -> None:
    with pytest.raises(ConfigError, match="a100-80gb"):
        device("a100-80g")
