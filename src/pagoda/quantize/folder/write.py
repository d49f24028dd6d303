"""A quantized Hugging Face folder: config.json that says how, the tokenizer, and weights in their packed parts.

The way: the checkpoint as Hugging Face would hold it → every linear of every layer quantized, in a forward pass over
the sample where the method wants one → the folder, a tensor at a time. Embedding, head and norms stay 16-bit floats.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pagoda.engine.memory import peak_memory
from pagoda.errors import ConfigError, UnsupportedError
from pagoda.formats.blocks import dequantize
from pagoda.formats.checkpoint import CONFIG, Checkpoint, open_checkpoint
from pagoda.formats.quantized import QuantizedTensor
from pagoda.formats.safetensors_writer import Place, SafetensorsFolder
from pagoda.models.hugging_face import HuggingFaceView, as_hugging_face
from pagoda.models.layers import Decoder, Experts
from pagoda.models.registry import family_of, load_model
from pagoda.quantize.calibration.forward import run_sample
from pagoda.quantize.calibration.layers import LayerQuantizer, QuantizingSource, Store, check_finite
from pagoda.quantize.calibration.sample import Sample, model_sample
from pagoda.quantize.job import Job
from pagoda.text.to_json import write_tokenizer
from pagoda.types import FloatArray, RawTensor

DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16"}  # as config.json calls them
SLAB_BYTES = 64 << 20  # of float32, of a tensor that is copied

Arrays = dict[str, npt.NDArray[Any]]
Parts = Callable[[str], Arrays]  # the parts of a linear, by its weight's name


class Packing(Protocol):
    """What a kind of checkpoint holds instead of a linear's weight."""

    def places(self, rows: int, columns: int) -> dict[str, Place]:
        """The parts that replace the weight, by what follows the linear's name."""

    def config(self, dtype: str, kept: Sequence[str]) -> dict[str, Any]:
        """`quantization_config` of config.json; `kept` are linears that stay floats."""


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint that is being turned into a quantized folder."""

    opened: Checkpoint
    view: Checkpoint | HuggingFaceView
    decoder: Decoder
    pieces: Mapping[str, tuple[RawTensor, ...]]  # a linear's weight → itself, or the matrices that it holds in order
    dtype: str  # of what is not quantized: "F16" or "BF16"

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear, by its weight's name."""
        return {name: (sum(p.shape[0] for p in pieces), pieces[0].shape[1]) for name, pieces in self.pieces.items()}

    @property
    def kept_linears(self) -> list[str]:
        """Names of linears that stay floats: the head, and what picks experts."""
        routers = [block.ffn.router.weight.name for block in self.decoder.blocks if isinstance(block.ffn, Experts)]
        return ["lm_head", *(name.removesuffix(".weight") for name in routers)]

    def tensor(self, name: str) -> RawTensor:
        return self.view.tensors[name]


def open_model(path: Path) -> OpenedModel:
    """Open the model at `path`. UnsupportedError if it is a folder that is quantized already."""
    opened = open_checkpoint(path)
    types = sorted({raw.type for raw in opened.tensors.values() if isinstance(raw, QuantizedTensor)})
    if types:
        raise UnsupportedError(
            f"{path} is quantized already ({', '.join(types)}); quantize the model that it was made from, or make a "
            f"folder of plain floats of it first: pagoda convert {path} -o FOLDER"
        )
    view = as_hugging_face(opened)
    decoder = load_model(view)
    pieces: dict[str, tuple[RawTensor, ...]] = {}
    for matrix in (matrix for block in decoder.blocks for matrix in block.matrices):
        name = matrix.part_of or matrix.name
        if len(view.tensors[name].shape) > 2:
            raise UnsupportedError(f"{name!r} holds all experts in one, which no quantized folder can say")
        pieces[name] = (*pieces.get(name, ()), matrix)
    return OpenedModel(opened, view, decoder, pieces, _dtype(view))


def _dtype(view: Checkpoint | HuggingFaceView) -> str:
    """16-bit floats as the model has them; Gemma's activations need the range of BF16."""
    types = {raw.type for raw in view.tensors.values()}
    return "BF16" if "BF16" in types or view.architecture.startswith("gemma") else "F16"


def fitting_group_size(model: OpenedModel, wanted: int, say: Callable[[str], None]) -> int:
    """`wanted`, or the largest half, quarter … of it that divides every row. ConfigError if none from 16 up does."""
    columns = {shape[1] for shape in model.linears.values()}
    size = wanted
    while size > 0 and any(n % size for n in columns):
        if size % 2 or size <= 16:
            rows = ", ".join(map(str, sorted(columns)))
            raise ConfigError(f"groups of {wanted} do not divide rows of {rows}; --group-size -1 takes whole rows")
        size //= 2
    if size != wanted:
        widest = next(n for n in sorted(columns) if n % wanted)
        say(f"groups of {size}: rows of {widest} do not divide into groups of {wanted}")
    return size


# Quantizing


def load_sample(job: Job, model: OpenedModel) -> Sample:
    """The calibration sample that the settings ask for."""
    s = job.settings
    sample = model_sample(model.opened, s, model.decoder.max_context, job.progress)
    windows, tokens = sample.windows.shape
    short = f", all that the text gives of {s.calibration_samples}" if windows < s.calibration_samples else ""
    job.say(f"calibrating on {windows} windows of {tokens} tokens ({s.calibration}){short}")
    return sample


def quantize_layers(job: Job, model: OpenedModel, sample: Sample, quantizer: LayerQuantizer) -> Store:
    """Run the sample through the model and quantize each linear when its inputs are known."""
    store = Store(job.work / "layers")
    owners = {piece.name: name for name, pieces in model.pieces.items() for piece in pieces}
    finished = 0

    def done(names: Sequence[str]) -> None:
        nonlocal finished
        finished += len(names)
        for name in names:
            model.view.release(owners[name])
        job.progress(f"{job.name}: linears", finished, len(owners))

    job.progress(f"{job.name}: linears", 0, len(owners))
    kept = [f"{name}.weight" for name in model.kept_linears]
    source = QuantizingSource(quantizer, store, done, kept)
    run_sample(model.decoder, sample.windows, source, job.settings.device, job.say)
    return store


# Writing


def write_folder(
    job: Job,
    model: OpenedModel,
    packing: Packing,
    parts: Parts,
    *,
    divisors: Mapping[str, FloatArray] | None = None,
    sample: Sample | None = None,
) -> Path:
    """The finished folder in the job's work folder. `divisors` are of norms and biases, by the name of the tensor or of
    the bias's weight."""
    folder = job.work / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_tokenizer(model.opened, folder)
    writer = _Writer(model, packing, parts, divisors or {})
    with SafetensorsFolder(folder, writer.places()) as out:
        for count, name in enumerate(out.order):
            out.write(name, writer.pieces(name))
            job.progress("writing tensors", count + 1, len(out.order))
    config = dict(model.view.metadata) | _config(job, model, packing, sample)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, default=_plain) + "\n", encoding="utf-8")
    job.say(f"peak memory {peak_memory() / 1e9:.2f} GB")
    return folder


def _config(job: Job, model: OpenedModel, packing: Packing, sample: Sample | None) -> dict[str, Any]:
    dtype = DTYPE_NAMES[model.dtype]
    made: dict[str, Any] = {"method": job.name, "source": job.source.name}
    if sample is not None:
        made["calibration"] = sample.as_json()
    return {
        "dtype": dtype,
        "torch_dtype": dtype,
        "quantization_config": packing.config(dtype, model.kept_linears),
        "pagoda": made,
    }


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into ones that JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value.tolist()


class _Writer:
    """Produces the tensors of the folder: the parts of quantized linears, everything else as 16-bit floats."""

    def __init__(
        self,
        model: OpenedModel,
        packing: Packing,
        parts: Parts,
        divisors: Mapping[str, FloatArray],
    ) -> None:
        self.model = model
        self.packing = packing
        self.parts = parts
        self.divisors = divisors
        self.norm_offset = np.float32(family_of(model.view).norm_offset)
        self._owner: dict[str, str] = {}  # part's name → its linear's weight
        self._parts: tuple[str, Arrays] = ("", {})

    def places(self) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for name, raw in self.model.view.tensors.items():
            if name not in self.model.linears:
                found[name] = Place(self.model.dtype, raw.shape)
                continue
            for part, place in self.packing.places(*self.model.linears[name]).items():
                self._owner[f"{name.removesuffix('weight')}{part}"] = name
                found[f"{name.removesuffix('weight')}{part}"] = place
        return found

    def pieces(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """The bytes of a tensor, in rows' order."""
        owner = self._owner.get(name)
        if owner is None:
            yield from self._copied(name)
            return
        if self._parts[0] != owner:
            self._parts = owner, self.parts(owner)
        yield self._parts[1][name.removeprefix(owner.removesuffix("weight"))]
        self.model.view.release(owner)

    def _copied(self, name: str) -> Iterator[npt.NDArray[Any]]:
        raw = self.model.tensor(name)
        for values in _slabs(raw):
            check_finite(name, values)
            yield narrow(self._divided(name, values), self.model.dtype, name)
        self.model.view.release(name)

    def _divided(self, name: str, values: FloatArray) -> FloatArray:
        if name in self.divisors:  # a norm's
            return (values + self.norm_offset) / self.divisors[name] - self.norm_offset
        stem = name.removesuffix("bias")
        if stem != name and f"{stem}weight" in self.divisors:
            return values / self.divisors[f"{stem}weight"]
        return values


def _slabs(raw: RawTensor) -> Iterator[FloatArray]:
    """The tensor in float32, some rows at a time."""
    rows, columns = raw.rows(), raw.shape[-1]
    step = max(SLAB_BYTES // (4 * columns), 1)
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        yield dequantize(part, raw.type, (len(part), columns))


def narrow(values: FloatArray, dtype: str, name: str) -> npt.NDArray[Any]:
    """float32 as F16 or, rounded to nearest even, as BF16 in uint16. What F16 cannot hold is refused."""
    if dtype == "F16":
        if values.size and float(np.abs(values).max()) > 65504:
            raise UnsupportedError(f"tensor {name!r} holds values that float16 cannot; convert the model to BF16 first")
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
