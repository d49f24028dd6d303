"""Where to compute: the backend that settings ask for."""

import pytest

from pagoda.backends.cpu import CpuBackend
from pagoda.config import EngineSettings
from pagoda.engine.device import make_backend
from pagoda.errors import ConfigError


def test_settings_of_the_cpu_reach_it() -> None:
    backend = make_backend(EngineSettings(backend="cpu", threads=3, isa="generic", activation_type="int8"))
    assert isinstance(backend, CpuBackend)
    assert (backend.threads, backend.isa, backend.runtime.activation_bits) == (3, "generic", 8)
    assert CpuBackend().runtime.activation_bits == 16


def test_what_a_device_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="--activation-type int8 needs --device cpu"):
        make_backend(EngineSettings(backend="reference", activation_type="int8"))
    with pytest.raises(ConfigError, match="--tensor-parallel needs --device cuda"):
        make_backend(EngineSettings(backend="cpu", tensor_parallel=2))


def test_16_bit_codes_of_keys_and_values_are_for_cpus() -> None:
    with pytest.raises(ConfigError, match="--kv-type int16 needs --device cpu"):
        make_backend(EngineSettings(backend="reference", kv_type="int16"))
