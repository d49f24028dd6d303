"""Written folders, as the format's own library reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pagoda.errors import CapacityError
from pagoda.formats.safetensors_writer import Place, SafetensorsFolder

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5, dtype=np.int8),
    "c": np.arange(6, dtype=np.float16).reshape(2, 3),
    "d": np.zeros((0, 4), dtype=np.int32),
}
PLACES = {
    "a": Place("F32", (3, 4)),
    "b": Place("I8", (5,)),
    "c": Place("F16", (2, 3)),
    "d": Place("I32", (0, 4)),
}


def write(folder: Path, **options: int) -> None:
    with SafetensorsFolder(folder, PLACES, **options) as out:
        for name in out.order:
            out.write(name, [ARRAYS[name][:1], ARRAYS[name][1:]])


def check(found: dict[str, np.ndarray]) -> None:
    assert set(found) == set(ARRAYS)
    for name, values in found.items():
        assert values.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(values, ARRAYS[name])


def test_one_file(tmp_path: Path) -> None:
    write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    check(load_file(tmp_path / "model.safetensors"))


def test_shards(tmp_path: Path) -> None:
    write(tmp_path, max_shard_bytes=50)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = {file: load_file(tmp_path / file) for file in files}
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in ARRAYS.values())
    assert all(name in parts[file] for name, file in index["weight_map"].items())
    check({name: values for part in parts.values() for name, values in part.items()})


def test_nothing_stays_of_what_failed(tmp_path: Path) -> None:
    def fail() -> None:
        with SafetensorsFolder(tmp_path, PLACES) as out:
            out.write("a", [ARRAYS["a"]])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="0 MB left"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []
