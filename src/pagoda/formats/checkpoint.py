"""One view of a model's files, the same for GGUF (split or whole) and for Hugging Face folders.

`open_checkpoint` takes a .gguf file, a folder with config.json and safetensors, or a folder with one GGUF model.
Tensors are views of memory-mapped files: opening costs the header, and the OS reads pages when they are touched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pagoda.errors import FormatError, PagodaError, UnsupportedError
from pagoda.formats import nvfp4_blocks
from pagoda.formats.gguf import MAGIC, GGUFHeader, parse_gguf
from pagoda.formats.mapped import MappedFile, TensorInfo, Version
from pagoda.formats.quant_methods import fold
from pagoda.formats.quantized import QuantizedTensor
from pagoda.formats.safetensors import parse_safetensors, read_json
from pagoda.types import RawTensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUANTIZE_CONFIG = "quantize_config.json"  # where AutoGPTQ put what config.json holds today
MODELOPT_CONFIG = "hf_quant_config.json"  # where ModelOpt puts it
TEXT_FILES = (  # of a folder: what its tokenizer and its chat template are made of
    *(CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.json", "chat_template.jinja"),
)
SAMPLED_BYTES = 4096  # of each end of a tensor
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Part = tuple[MappedFile, tuple[TensorInfo, ...]]


class Checkpoint:
    """A model's settings and tensors as they lie in its files. Also a context manager that closes it.

    architecture is GGUF's `general.architecture` or config.json's `model_type` without a `_text` suffix; metadata
    is what GGUF's keys or config.json say, as it stands; tensors go by the file's own names, their bytes need not
    be aligned in safetensors files. A layer that its file quantizes in parts is one tensor, a `QuantizedTensor`.
    """

    def __init__(
        self,
        kind: Literal["gguf", "safetensors"],
        path: Path,
        architecture: str,
        metadata: Mapping[str, Any],
        parts: Iterable[Part],
    ) -> None:
        self.kind = kind
        self.path = path
        self.architecture = architecture
        self.metadata = metadata
        self.file_bytes = 0
        self.tensors: dict[str, RawTensor] = {}
        self._files: list[MappedFile] = []
        self._places: dict[str, tuple[MappedFile, TensorInfo]] = {}
        for file, tensors in parts:
            self._add(file, tensors)
        self._text_files = {path / name: _version(path / name) for name in TEXT_FILES if kind == "safetensors"}

    def _add(self, file: MappedFile, tensors: tuple[TensorInfo, ...]) -> None:
        self._files.append(file)
        self.file_bytes += file.size
        for info in tensors:
            if info.name in self._places:
                other = self._places[info.name][0].path
                raise FormatError(f"tensor {info.name!r} stands in {other.name} too", path=str(file.path))
            self._places[info.name] = file, info
            data = file.view(info.offset, info.num_bytes)
            self.tensors[info.name] = RawTensor(info.name, info.type, info.shape, data)

    def release(self, name: str) -> None:
        """Let the OS take back the pages of tensor `name`: for tensors that have been copied. Views stay valid."""
        tensor = self.tensors.get(name)
        for part in tensor.parts.values() if isinstance(tensor, QuantizedTensor) else ():
            self._release(part.name)
        if name in self._places:
            self._release(name)

    def _release(self, name: str) -> None:
        file, info = self._places[name]
        file.release(info.offset, info.num_bytes)

    def fold(self, quantization: Mapping[str, Any]) -> None:
        """Make one tensor of the parts of each quantized layer; see `quant_methods.fold`, also for what is raised."""
        try:
            self.tensors = fold(self.tensors, quantization)
        except PagodaError as error:
            raise type(error)(f"{self.path}: {error}") from error

    def guard(self) -> None:
        """For who reads tensors for long: see `MappedFile.guard`."""
        for file in self._files:
            file.guard()

    def changed(self) -> str | None:
        """What has become of the files since they were opened; None: nothing that could be seen here.

        Those that the tokenizer is made of count too: the process that reads long prompts may read them later.
        """
        mapped = next((change for file in self._files if (change := file.changed())), None)
        if mapped is not None:
            return mapped
        text = next((path for path, seen in self._text_files.items() if _version(path) != seen), None)
        return None if text is None else f"{text} is not what it was when the model was opened"

    def content_digest(self) -> str:
        """A hash of the settings and of each tensor's first and last bytes: another one for another fine-tune.

        Takes a fraction of a second, whatever the model's size. Someone who wants to can make two models of one digest.
        """
        digest = hashlib.sha256()
        for key in sorted(self.metadata):
            digest.update(repr((key, self.metadata[key])).encode("utf-8", "surrogateescape"))
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(repr((name, tensor.type, tensor.shape)).encode())
            data = tensor.data.reshape(-1)
            digest.update(bytes(data[:SAMPLED_BYTES]) + bytes(data[-SAMPLED_BYTES:]))
        return digest.hexdigest()

    def close(self) -> None:
        """Forget the tensors; files are unmapped when the last view of them is gone. Idempotent."""
        self.tensors.clear()
        self._places.clear()
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _version(path: Path) -> Version | None:
    """The version of a file; None: there is no file."""
    try:
        return Version.of(path.stat())
    except OSError:
        return None


def open_checkpoint(path: Path | str, *, any_type: bool = False) -> Checkpoint:
    """Open a model's files. FormatError if there is no model at `path` or it is damaged; UnsupportedError if it is
    of a kind that Pagoda does not read; with `any_type` tensors may be of GGUF types that nothing here decodes."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, any_type)
    if path.suffix == ".gguf" or _starts_with_magic(path):
        return _open_gguf(path, any_type)
    if path.suffix == ".safetensors":
        raise FormatError("weights alone are no model; name the folder that holds config.json too", path=str(path))
    raise FormatError("neither a GGUF file nor a folder with config.json and *.safetensors", path=str(path))


def _starts_with_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", path=str(path)) from error


def _open_folder(path: Path, any_type: bool) -> Checkpoint:
    ggufs = sorted(path.glob("*.gguf"))
    if (path / CONFIG).is_file() and any(path.glob("*.safetensors")):
        return _open_safetensors(path, any_type)
    models = {match["stem"] if (match := _SPLIT_NAME.fullmatch(file.name)) else file.name for file in ggufs}
    if len(models) == 1:
        return _open_gguf(ggufs[0], any_type)
    if models:
        names = ", ".join(file.name for file in ggufs)
        raise FormatError(f"the folder holds several GGUF models, name one of them: {names}", path=str(path))
    raise FormatError(_what_is_missing(path), path=str(path))


def _what_is_missing(path: Path) -> str:
    """Why the folder is no model, and what to do about it."""
    if (path / "adapter_config.json").is_file():
        return "the folder holds a LoRA adapter: serve the model that it was made for, with --lora NAME=FOLDER"
    if any(path.glob("*.safetensors")):
        return "the folder holds *.safetensors, but no config.json: copy the one that was published beside them"
    if not (path / CONFIG).is_file():
        return "the folder holds neither config.json with *.safetensors nor a .gguf file"
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        return (
            "the folder's weights are pickled, which Pagoda does not read, since unpickling may run any code: "
            "load them with transformers and save them with save_pretrained, which writes *.safetensors"
        )
    return "the folder holds config.json, but no weights: *.safetensors or a .gguf file is missing; download it again"


# GGUF


def _open_gguf(path: Path, any_type: bool) -> Checkpoint:
    file = MappedFile(path)
    header = parse_gguf(file.buffer, str(path), any_type=any_type)
    count = header.metadata.get("split.count", 1)
    parts = [(file, header)] if count in (0, 1) else _open_split(path, count, any_type)
    metadata = parts[0][1].metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise FormatError("general.architecture is missing; this is not a model", path=str(path))
    checkpoint = Checkpoint("gguf", path, architecture, metadata, [(file, header.tensors) for file, header in parts])
    try:
        checkpoint.tensors = nvfp4_blocks.fold(checkpoint.tensors)
    except FormatError as error:
        raise FormatError(str(error), path=str(path)) from error
    return checkpoint


def _open_split(path: Path, count: Any, any_type: bool) -> list[tuple[MappedFile, GGUFHeader]]:
    """All parts of the split model that `path` is one part of, in order."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        message = f"is one of {count!r} parts, so it must be named NAME-00001-of-{count!r:0>5}.gguf and the like"
        raise FormatError(message, path=str(path))
    parts = []
    for number in range(count):
        part_path = path.with_name(f"{match['stem']}-{number + 1:05}-of-{count:05}.gguf")
        if not part_path.is_file():
            raise FormatError(f"part {number + 1} of {count} is missing: {part_path.name}", path=str(path))
        file = MappedFile(part_path)
        header = parse_gguf(file.buffer, str(part_path), any_type=any_type)
        if (header.metadata.get("split.no"), header.metadata.get("split.count")) != (number, count):
            raise FormatError(f"does not say that it is part {number + 1} of {count}", path=str(part_path))
        parts.append((file, header))
    found, wanted = sum(len(header.tensors) for _, header in parts), parts[0][1].metadata.get("split.tensors.count")
    if wanted not in (None, found):
        raise FormatError(f"the parts hold {found} tensors, but split.tensors.count is {wanted!r}", path=str(path))
    return parts


# safetensors


def _open_safetensors(path: Path, any_type: bool) -> Checkpoint:
    config = read_json(path / CONFIG)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise FormatError("model_type is missing", path=str(path / CONFIG))
    is_sharded = (path / INDEX).is_file() and not (
        path / WEIGHTS
    ).is_file()  # beside a whole file an index is a leftover
    parts = _open_shards(path) if is_sharded else _open_unindexed(path)
    checkpoint = Checkpoint("safetensors", path, model_type.removesuffix("_text"), config, parts)
    with suppress(*((UnsupportedError,) if any_type else ())):
        if quantization := _quantization(path, config):
            checkpoint.fold(quantization)
    return checkpoint


def _quantization(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How layers are quantized; empty where they are not."""
    found = config.get("quantization_config") or config.get("compression_config") or {}
    if not found and (path / QUANTIZE_CONFIG).is_file():
        found = read_json(path / QUANTIZE_CONFIG)
    if not found and (path / MODELOPT_CONFIG).is_file():
        found = {"quant_method": "modelopt", **(read_json(path / MODELOPT_CONFIG).get("quantization") or {})}
    if not isinstance(found, Mapping):
        raise FormatError("quantization_config must be an object", path=str(path / CONFIG))
    return found


def _open_weights(path: Path) -> Part:
    file = MappedFile(path)
    return file, parse_safetensors(file.buffer, str(path))


def _open_unindexed(path: Path) -> list[Part]:
    """model.safetensors, or else the only *.safetensors there is."""
    files = [path / WEIGHTS] if (path / WEIGHTS).is_file() else sorted(path.glob("*.safetensors"))
    if len(files) > 1:
        raise FormatError(f"{len(files)} *.safetensors files, but no {INDEX} that orders them", path=str(path))
    return [_open_weights(files[0])]


def _open_shards(path: Path) -> list[Part]:
    """The tensors that the index lists, each from the shard where the index says it is."""
    index_path = path / INDEX
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
        raise FormatError("weight_map must map tensor names to file names in the same folder", path=str(index_path))
    parts = []
    for shard in sorted(set(weight_map.values())):
        file, tensors = _open_weights(path / shard)
        listed = tuple(tensor for tensor in tensors if weight_map.get(tensor.name) == shard)
        parts.append((file, listed))
    missing = weight_map.keys() - {tensor.name for _, tensors in parts for tensor in tensors}
    if missing:
        example = min(missing)
        message = f"{len(missing)} listed tensors are missing, such as {example!r} in {weight_map[example]}"
        raise FormatError(message, path=str(index_path))
    return parts


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\\" not in name
