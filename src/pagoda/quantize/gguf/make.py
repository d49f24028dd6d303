"""Making a GGUF file of block formats: plan every tensor's type, then encode and write them one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pagoda import _native
from pagoda.backends.cores import usable_cores
from pagoda.engine.memory import peak_memory
from pagoda.errors import FormatError
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.formats.gguf_writer import GGUFWriter, TensorRow, Value, text, u32
from pagoda.formats.quantized import QuantizedTensor
from pagoda.quantize.calibration.collect_imatrix import collect_imatrix
from pagoda.quantize.calibration.imatrix import Imatrix, read_imatrix, write_imatrix
from pagoda.quantize.gguf.folder_source import FolderSource
from pagoda.quantize.gguf.mixes import MIXES, Mix, TypeChoice, choose_types, parse_overrides
from pagoda.quantize.gguf.source_model import GGUFSource, SourceModel, decode_rows
from pagoda.quantize.job import Job
from pagoda.types import FloatArray, RawTensor

STRETCH = 1 << 24  # numbers decoded and encoded at a time: 64 MiB
QUANTIZATION_VERSION = 2
FLOATS = ("F32", "F16", "BF16")


def quantize(job: Job) -> Path:
    """A `Method`: the model as one GGUF file of the mix `job.name`."""
    threads = job.settings.threads or usable_cores()
    overrides = parse_overrides(job.settings.tensor_type)
    mix = MIXES[job.name]
    with open_weights(job.source, threads) as weights:
        imatrix = _imatrix(job, weights)
        choices = choose_types(
            {name: source.shape for name, source in weights.sources.items()},
            {name: source.type for name, source in weights.sources.items()},
            mix,
            heads_per_kv=_heads_per_kv(weights.values),
            has_imatrix=imatrix is not None,
            overrides=overrides,
        )
        _say(job, weights, choices)
        types = {name: choice.type for name, choice in choices.items()}
        path = _make(job, weights, types, mix, imatrix, threads)
    job.say(f"peak memory {peak_memory() / 1e9:.2f} GB")
    return path


def keep(job: Job) -> Path:
    """A `Method`: a quantized Hugging Face folder as one GGUF file whose blocks hold its codes, as far as they can."""
    threads = job.settings.threads or usable_cores()
    with open_weights(job.source, threads) as weights:
        types = {name: source.type for name, source in weights.sources.items()}
        layers = Counter(type for type in types.values() if type.lower() in MIXES and type not in FLOATS)
        mix = MIXES[layers.most_common(1)[0][0].lower() if layers else "bf16"]
        path = _make(job, weights, types, mix, None, threads)
        _say_added(job, weights, path, threads)
    return path


def _make(
    job: Job, weights: SourceModel, types: Mapping[str, str], mix: Mix, imatrix: Imatrix | None, threads: int
) -> Path:
    rows = [TensorRow(name, types[name], source.shape) for name, source in weights.sources.items()]
    path = job.work / "model.gguf"
    with GGUFWriter(path, _values(weights, mix.file_type, imatrix), rows) as writer:
        _write_all(job, writer, weights, imatrix, threads)
    return path


def _say_added(job: Job, weights: SourceModel, path: Path, threads: int) -> None:
    """What the blocks change of quantized layers, by type: root mean square over all layers, of the weights'."""
    sums: dict[tuple[str, str], list[float]] = {}
    with open_checkpoint(path) as made:
        for name, theirs in weights.names.items():
            tensors = [weights.checkpoint.tensors[their] for their in theirs]
            if isinstance(tensors[0], QuantizedTensor):
                total = sums.setdefault((tensors[0].type, made.tensors[name].type), [0.0, 0.0, 0.0])
                found = (*added_error(weights, name, made.tensors[name], threads), len(tensors))
                total[:] = [a + b for a, b in zip(total, found, strict=True)]
                weights.release(name)
    for (old, new), (change, size, count) in sums.items():
        job.say(f"{count:.0f} layers: {old} as {new}, added error {(change / max(size, 1e-30)) ** 0.5:.3%}")


def added_error(weights: SourceModel, name: str, made: RawTensor, threads: int) -> tuple[float, float]:
    """The sums of squares of what the new tensor changes, and of the weights."""
    change = size = 0.0
    columns, rows = made.shape[-1], len(made.rows())
    step = max(1, STRETCH // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        x = weights.rows(name, start, stop)
        difference = decode_rows(made, start, stop, threads) - x
        change += float(np.square(difference, dtype=np.float64).sum())
        size += float(np.square(x, dtype=np.float64).sum())
    return change, size


def _imatrix(job: Job, weights: SourceModel) -> Imatrix | None:
    """The matrix that the settings ask for; one that is computed is kept for when the job is interrupted."""
    wanted = job.settings.imatrix
    if wanted is None:
        return None
    if wanted != "auto":
        return read_imatrix(Path(wanted).expanduser())
    kept = job.work / "imatrix.gguf"
    if not kept.is_file():
        names = {theirs: name for name, tensors in weights.names.items() for theirs in tensors}
        write_imatrix(collect_imatrix(weights.checkpoint, names, job.settings, job.progress, job.say), kept)
    imatrix = replace(read_imatrix(kept), name=f"auto ({job.settings.calibration})")
    if job.settings.save_imatrix is not None:
        write_imatrix(imatrix, job.settings.save_imatrix)
    return imatrix


@contextmanager
def open_weights(path: Path, threads: int) -> Iterator[SourceModel]:
    """The tensors of the model at `path` under their GGUF names."""
    with open_checkpoint(path) as checkpoint:
        yield GGUFSource(checkpoint, threads) if checkpoint.kind == "gguf" else FolderSource(checkpoint, threads)


def encode_rows(
    name: str, x: FloatArray, type: str, importance: FloatArray | None, threads: int, first_row: int = 0
) -> npt.NDArray[np.uint8]:
    """x [rows, columns] in blocks of `type`, [rows, bytes of a row].

    FormatError names the first number that is NaN, infinite, or too large for the type.
    """
    block = BLOCK_TYPES[type]
    columns = x.shape[1]
    out = np.empty((len(x), columns // block.elements * block.bytes), np.uint8)
    at = _native.quantize(x, type, out, importance, threads)
    if at >= 0:
        row, column = divmod(at, columns)
        value = float(x[row, column])
        remedy = f"{type} reaches to 65504; take bf16 or f32" if np.isfinite(value) else "the weights are damaged"
        raise FormatError(f"tensor {name!r} holds {value:g} at row {first_row + row}, column {column}; {remedy}")
    return out


def _write_all(job: Job, writer: GGUFWriter, weights: SourceModel, imatrix: Imatrix | None, threads: int) -> None:
    total = len(writer.rows)
    for row in writer.missing():
        job.progress(job.name, writer.rows.index(row), total)
        _write(writer, row, weights, imatrix, threads)
        weights.release(row.name)
    job.progress(job.name, total, total)


def _write(writer: GGUFWriter, row: TensorRow, weights: SourceModel, imatrix: Imatrix | None, threads: int) -> None:
    if row.type == weights.sources[row.name].type and (raw := weights.raw(row.name)) is not None:
        _check_floats(row, raw)
        return writer.write(row.name, raw)
    columns = row.shape[-1]
    num_rows = int(np.prod(row.shape[:-1], dtype=np.int64))
    matrices = row.shape[0] if len(row.shape) > 2 else 1
    each = num_rows // matrices
    known = [None] * matrices if imatrix is None else imatrix.columns(row.name, columns, matrices)
    step = max(1, STRETCH // columns)
    for matrix, importance in enumerate(known):
        end = (matrix + 1) * each
        for start in range(matrix * each, end, step):
            x = weights.rows(row.name, start, min(start + step, end))
            writer.write(row.name, encode_rows(row.name, x, row.type, importance, threads, start))


def _check_floats(row: TensorRow, raw: npt.NDArray[np.uint8]) -> None:
    """FormatError if a tensor that is copied as it stands holds what is not a number."""
    if row.type == "F32" and not np.isfinite(raw.reshape(-1).view(np.uint8).view("<f4")).all():
        raise FormatError(f"tensor {row.name!r} holds NaN or infinity; the weights are damaged")


def _values(weights: SourceModel, file_type: int, imatrix: Imatrix | None) -> dict[str, Value]:
    added = {"general.quantization_version": u32(QUANTIZATION_VERSION), "general.file_type": u32(file_type)}
    if imatrix is not None:
        added["quantize.imatrix.file"] = text(imatrix.name)
        added["quantize.imatrix.dataset"] = text(", ".join(imatrix.datasets))
        added["quantize.imatrix.entries_count"] = u32(len(imatrix.entries))
        added["quantize.imatrix.chunks_count"] = u32(imatrix.chunks)
    return {**weights.values, **added}


def _heads_per_kv(values: Mapping[str, Value]) -> int:
    """How many query heads share one KV head."""
    heads = [value for key, value in values.items() if key.endswith(".attention.head_count")]
    kv_heads = [value for key, value in values.items() if key.endswith(".attention.head_count_kv")]
    if not heads or not kv_heads or len(heads[0].raw) != 4 or len(kv_heads[0].raw) != 4:
        return 1
    count, kv_count = (int.from_bytes(value[0].raw, "little") for value in (heads, kv_heads))
    return count // kv_count if kv_count else 1


def _say(job: Job, weights: SourceModel, choices: Mapping[str, TypeChoice]) -> None:
    """Tell the user of fallback types, and of a source that was quantized before."""
    fallen: dict[tuple[str, str, int], int] = {}
    for name, choice in choices.items():
        if choice.wanted is not None:
            key = (choice.wanted, choice.type, weights.sources[name].shape[-1])
            fallen[key] = fallen.get(key, 0) + 1
    for (wanted, type, columns), count in fallen.items():
        job.say(
            f"{count} tensors become {type} instead of {wanted}, whose blocks do not divide their rows of {columns}"
        )
    lossy = sorted({source.type for source in weights.sources.values()} - set(FLOATS))
    changed = [name for name, choice in choices.items() if choice.type != weights.sources[name].type]
    if lossy and changed:
        job.say(f"the source is quantized already ({', '.join(lossy)}): its losses stay, and new ones are added")
