"""A model as a Hugging Face folder of plain floats: config.json, tokenizer, safetensors; from any block types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pagoda.backends.cores import usable_cores
from pagoda.errors import FormatError
from pagoda.formats.checkpoint import CONFIG, Checkpoint, open_checkpoint
from pagoda.formats.safetensors_writer import Place, SafetensorsFolder
from pagoda.models.hugging_face import as_hugging_face
from pagoda.quantize.gguf.make import STRETCH, encode_rows
from pagoda.quantize.gguf.source_model import decode_rows
from pagoda.quantize.job import Job
from pagoda.text.to_json import write_tokenizer
from pagoda.types import RawTensor

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class FolderView(Protocol):
    """A checkpoint as a Hugging Face folder holds it."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, RawTensor]: ...
    def release(self, name: str) -> None: ...


QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # of config.json; the folder has plain floats


def write_folder(job: Job) -> Path:
    """A `Method`: the model in floats of `job.settings.dtype`, in a folder that transformers loads."""
    with open_checkpoint(job.source) as checkpoint:
        return write_view(job, checkpoint, as_hugging_face(checkpoint))


def write_view(job: Job, checkpoint: Checkpoint, view: FolderView) -> Path:
    """The folder of what `view` makes of the checkpoint."""
    dtype = job.settings.dtype
    threads = job.settings.threads or usable_cores()
    folder = job.work / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_tokenizer(checkpoint, folder)
    places = {name: Place(dtype.upper(), raw.shape) for name, raw in view.tensors.items()}
    with SafetensorsFolder(folder, places) as out:
        for count, name in enumerate(out.order):
            out.write(name, _pieces(view.tensors[name], dtype.upper(), threads))
            view.release(name)
            job.progress("tensors", count + 1, len(out.order))
    kept = {key: value for key, value in view.metadata.items() if key not in QUANTIZATION_KEYS}
    config = {**kept, "dtype": DTYPES[dtype], "torch_dtype": DTYPES[dtype]}
    text = json.dumps(config, indent=2, default=_plain)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return folder


def _pieces(raw: RawTensor, dtype: str, threads: int) -> Iterator[npt.NDArray[Any]]:
    """The tensor's bytes in rows' order. FormatError if it holds what is not a number, or too large for the dtype."""
    columns = raw.shape[-1]
    rows = int(np.prod(raw.shape[:-1], dtype=np.int64))
    step = max(1, STRETCH // columns)
    for start in range(0, rows, step):
        x = decode_rows(raw, start, min(start + step, rows), threads)
        if dtype == "F32" and not np.isfinite(x).all():
            raise FormatError(f"tensor {raw.name!r} holds NaN or infinity; the weights are damaged")
        yield encode_rows(raw.name, x, dtype, None, threads, start)


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into ones that JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value.tolist()
