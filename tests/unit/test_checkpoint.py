"""Opening models: single and split GGUF files, Hugging Face folders with one shard or several."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_files import GGUF, I32, STRING, U16, Field, Tensor, model_metadata
from pagoda.errors import FormatError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.types import RawTensor


def numbers(tensor: RawTensor) -> Any:
    return dequantize(tensor.data, tensor.type, tensor.shape).tolist()


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def write_safetensors(path: Path, tensors: dict[str, list[float]]) -> Path:
    header, data = {}, b""
    for name, values in tensors.items():
        raw = floats(*values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_split(folder: Path, count: int = 3, total: int | None = None) -> list[Path]:
    """A GGUF model of `count` parts with a tensor each."""
    paths = []
    for number in range(count):
        split = {"split.no": Field(U16, number), "split.count": Field(U16, count)}
        if total is not None:
            split["split.tensors.count"] = Field(I32, total)
        first = model_metadata(x=Field(STRING, "kept")) if number == 0 else {}
        tensors = [Tensor(f"t{number}", (1,), 0, floats(number))]
        paths.append(GGUF({**first, **split}, tensors).write(folder / f"m-{number + 1:05}-of-{count:05}.gguf"))
    return paths


def test_opens_a_gguf_file(tmp_path: Path) -> None:
    path = GGUF(model_metadata(), [Tensor("a.weight", (3, 2), 0, floats(*range(6)))]).write(tmp_path / "m.gguf")
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.kind, checkpoint.architecture, checkpoint.path) == ("gguf", "llama", path)
        assert checkpoint.file_bytes == path.stat().st_size
        assert numbers(checkpoint.tensors["a.weight"]) == [[0, 1, 2], [3, 4, 5]]


def test_finds_the_gguf_of_a_folder_and_gguf_files_by_magic(tmp_path: Path) -> None:
    path = GGUF(model_metadata(), [Tensor("a", (1,), 0, floats(5))]).write(tmp_path / "m.gguf")
    assert numbers(open_checkpoint(tmp_path).tensors["a"]) == [5]
    assert open_checkpoint(path.rename(tmp_path / "blob")).architecture == "llama"


def test_views_are_read_only_and_outlive_close_and_release(tmp_path: Path) -> None:
    path = GGUF(model_metadata(), [Tensor("a", (1024, 64), 0, floats(*[7.0] * 65_536))]).write(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.tensors["a"]
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0] = 1
    checkpoint.release("a")
    checkpoint.close()
    checkpoint.close()
    assert not checkpoint.tensors
    assert np.frombuffer(tensor.data, "<f4").sum() == 7 * 65_536


def test_release_gives_pages_back(tmp_path: Path) -> None:
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("needs /proc/self/smaps")
    path = GGUF(model_metadata(), [Tensor("a", (1 << 20,), 0, bytes(4 << 20))]).write(tmp_path / "m.gguf")

    def resident_kib() -> int:
        lines = smaps.read_text().splitlines()
        at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
        return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["a"].data.sum() == 0
        assert resident_kib() > 4000
        checkpoint.release("a")
        assert resident_kib() < 200


@pytest.mark.parametrize("part", [0, 2])
def test_opens_split_files_from_any_part(tmp_path: Path, part: int) -> None:
    paths = write_split(tmp_path, total=3)
    checkpoint = open_checkpoint(paths[part])
    assert [numbers(tensor) for tensor in checkpoint.tensors.values()] == [[0], [1], [2]]
    assert checkpoint.metadata["x"] == "kept"
    assert checkpoint.file_bytes == sum(path.stat().st_size for path in paths)
    assert len(open_checkpoint(tmp_path).tensors) == 3


def test_refuses_incomplete_splits(tmp_path: Path) -> None:
    paths = write_split(tmp_path, total=4)
    with pytest.raises(FormatError, match=r"the parts hold 3 tensors, but split\.tensors\.count is 4"):
        open_checkpoint(paths[0])
    renamed = paths[1].rename(tmp_path / "other.gguf")
    with pytest.raises(FormatError, match=r"part 2 of 3 is missing: m-00002-of-00003\.gguf"):
        open_checkpoint(paths[0])
    with pytest.raises(FormatError, match=r"must be named NAME-00001-of-00003\.gguf"):
        open_checkpoint(renamed)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(FormatError, match="does not say that it is part 2 of 3"):
        open_checkpoint(paths[0])


def test_refuses_a_tensor_that_stands_in_two_parts(tmp_path: Path) -> None:
    paths = write_split(tmp_path, count=2)
    split = {"split.no": Field(U16, 1), "split.count": Field(U16, 2)}
    GGUF(split, [Tensor("t0", (1,), 0, floats(1))]).write(paths[1])
    with pytest.raises(FormatError, match=r"tensor 't0' stands in m-00001-of-00002\.gguf too"):
        open_checkpoint(paths[0])


def test_refuses_a_split_count_that_is_no_number(tmp_path: Path) -> None:
    path = GGUF(model_metadata(**{"split.count": Field(STRING, "many")})).write(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(FormatError, match="is one of 'many' parts"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ({"config.json": b"{}"}, "but no weights.*download it again"),
        ({"config.json": b"{}", "pytorch_model.bin": b"PK"}, "pickled.*save_pretrained"),
        ({"model.safetensors": b"x"}, r"no config\.json: copy"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "LoRA adapter.*--lora NAME=FOLDER"),
        ({"model.gguf": b"version https://git-lfs.github.com/spec/v1\noid"}, "git lfs pull"),
        ({"model.gguf": b"<!DOCTYPE html><html>"}, "a web page"),
    ],
)
def test_a_folder_that_is_no_model_says_what_to_do(tmp_path: Path, files: dict[str, bytes], remedy: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=remedy):
        open_checkpoint(tmp_path)


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds neither config"):
        open_checkpoint(tmp_path)
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        open_checkpoint(tmp_path / "absent.bin")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FormatError, match="the file is empty"):
        open_checkpoint(tmp_path / "empty.gguf")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(FormatError, match="neither a GGUF file nor a folder"):
        open_checkpoint(tmp_path / "text.txt")
    GGUF({}).write(tmp_path / "empty.gguf")
    with pytest.raises(FormatError, match=r"general\.architecture is missing"):
        open_checkpoint(tmp_path / "empty.gguf")
    GGUF({}).write(tmp_path / "second.gguf")
    with pytest.raises(FormatError, match=r"several GGUF models, name one of them: empty\.gguf, second\.gguf"):
        open_checkpoint(tmp_path)


def test_opens_a_hugging_face_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "gemma3_text", "hidden_size": 8})
    path = write_safetensors(tmp_path / "model.safetensors", {"a": [1, 2], "b": [3]})
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.architecture) == ("safetensors", "gemma3")
    assert checkpoint.metadata["hidden_size"] == 8
    assert {name: numbers(tensor) for name, tensor in checkpoint.tensors.items()} == {"a": [1, 2], "b": [3]}
    with pytest.raises(FormatError, match="name the folder"):
        open_checkpoint(path)


@pytest.mark.parametrize("before", [None, "{}"])
@pytest.mark.parametrize("after", ["{ }", None])
def test_notices_that_a_tokenizer_changed(tmp_path: Path, before: str | None, after: str | None) -> None:
    """The process that reads long prompts makes its tokenizer when the first of them comes."""

    def write(text: str | None) -> None:
        path = tmp_path / "tokenizer.json"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)

    write_json(tmp_path / "config.json", {"model_type": "llama"})
    write_safetensors(tmp_path / "model.safetensors", {"a": [1]})
    (tmp_path / "notes.txt").write_text("")
    write(before)
    checkpoint = open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("nobody reads this")
    assert checkpoint.changed() is None
    write(after)
    changed = checkpoint.changed()
    assert changed is None if before == after else "tokenizer.json is not what it was" in str(changed)


def sharded(folder: Path, weight_map: dict[str, Any]) -> Path:
    write_json(folder / "config.json", {"model_type": "llama"})
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    write_safetensors(folder / "1.safetensors", {"a": [1], "unlisted": [9]})
    write_safetensors(folder / "2.safetensors", {"b": [2], "a": [8]})
    return folder


def test_opens_shards_as_the_index_says(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, {"b": "2.safetensors", "a": "1.safetensors"}))
    assert {name: numbers(tensor) for name, tensor in checkpoint.tensors.items()} == {"a": [1], "b": [2]}


def test_an_index_beside_a_whole_file_is_a_leftover(tmp_path: Path) -> None:
    """As transformers has it: model.safetensors first, then its index."""
    sharded(tmp_path, {"a": "gone.safetensors"})
    write_safetensors(tmp_path / "model.safetensors", {"a": [5]})
    checkpoint = open_checkpoint(tmp_path)
    assert {name: numbers(tensor) for name, tensor in checkpoint.tensors.items()} == {"a": [5]}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "1.safetensors", "c": "2.safetensors"}, r"1 listed tensors are missing, such as 'c' in 2\.safetensors"),
        ({"a": "3.safetensors"}, r"3\.safetensors: cannot be read"),
        ({"a": "../1.safetensors"}, "in the same folder"),
        ({"a": "/etc/passwd"}, "in the same folder"),
        ({"a": 1}, "in the same folder"),
        ([], "in the same folder"),
    ],
)
def test_refuses_broken_indexes(tmp_path: Path, weight_map: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(sharded(tmp_path, weight_map))


def test_refuses_ambiguous_folders(tmp_path: Path) -> None:
    sharded(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FormatError, match=r"2 \*\.safetensors files, but no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(FormatError, match=r"config\.json: model_type is missing"):
        open_checkpoint(tmp_path)
