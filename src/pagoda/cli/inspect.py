"""`pagoda inspect`: what a model's files hold, without loading it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagoda.cli.progress import download_progress
from pagoda.cli.servable import obstacles
from pagoda.errors import PagodaError
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.models.layers import Decoder
from pagoda.models.registry import family_of, load_head, load_model
from pagoda.sources import resolve
from pagoda.types import RawTensor

CUT_CHARACTERS = 100
CUT_ITEMS = 8


@dataclass(slots=True)
class TypeTotal:
    """All tensors of one type."""

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .gguf file, a model folder, or any model name.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor too.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Do not cut long metadata.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, tensors included.")] = False,
) -> None:
    """Show a model's architecture, size, block formats, metadata and tensors, and whether it can be served.

    Reads headers only.
    """
    with download_progress() as progress:
        path = resolve(file, progress=progress).path
    with open_checkpoint(path, any_type=True) as checkpoint:
        if as_json:
            typer.echo(json.dumps(describe(checkpoint, full=full), indent=2, ensure_ascii=False, allow_nan=False))
        else:
            _print_tables(checkpoint, Console(), tensors=tensors, full=full)


def describe(checkpoint: Checkpoint, *, full: bool) -> dict[str, Any]:
    """What `--json` prints. Long metadata is cut unless `full`."""
    totals = type_totals(checkpoint.tensors)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.kind,
        "architecture": checkpoint.architecture,
        "obstacles": obstacles(checkpoint),  # to serving it
        "parameters": sum(total.parameters for total in totals.values()),
        "file_bytes": checkpoint.file_bytes,
        "bits_per_weight": _bits_per_weight(totals.values()),
        "types": {name: asdict(total) for name, total in totals.items()},
        **layers_of(checkpoint),
        "metadata": {key: _plain(value, full) for key, value in checkpoint.metadata.items()},
        "tensors": [
            {"name": tensor.name, "type": tensor.type, "shape": tensor.shape, "bytes": tensor.num_bytes}
            for tensor in checkpoint.tensors.values()
        ],
    }


def layers_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """How many layers have attention and how many a state, the bytes of one, what of the file is not served, and
    whether it has a head that predicts one token more.

    Empty where the family is not known, or the file is not one that it could be.
    """
    try:
        family = family_of(checkpoint)
        model = load_model(checkpoint)
    except PagodaError:
        return {}
    recurrent = [block.recurrent for block in model.blocks if block.recurrent is not None]
    left_out = [what for start, what in family.left_out.items() if any(n.startswith(start) for n in checkpoint.tensors)]
    return {
        "attention_layers": len(model.attentions),
        "recurrent_layers": len(recurrent),
        "state_bytes": 4 * sum(net.state_elements for net in recurrent),
        "left_out": left_out,
        "head": _head_of(checkpoint, model),
    }


def _head_of(checkpoint: Checkpoint, model: Decoder) -> str | None:
    """What becomes of the head that predicts one token more; None: the model has none."""
    try:
        head = load_head(checkpoint, model)
    except PagodaError as error:
        return f"not used: {error}"
    return None if head is None else "guesses tokens ahead on a CPU (--speculation mtp)"


def type_totals(tensors: Mapping[str, RawTensor]) -> dict[str, TypeTotal]:
    """Totals by tensor type, the one with the most bytes first."""
    totals: dict[str, TypeTotal] = {}
    for tensor in tensors.values():
        total = totals.setdefault(tensor.type, TypeTotal())
        total.tensors += 1
        total.parameters += math.prod(tensor.shape)
        total.bytes += tensor.num_bytes
    return dict(sorted(totals.items(), key=lambda item: -item[1].bytes))


def _bits_per_weight(totals: Any) -> float:
    parameters = sum(total.parameters for total in totals)
    return round(8 * sum(total.bytes for total in totals) / parameters, 3) if parameters else 0.0


def _plain(value: Any, full: bool) -> Any:
    """A metadata value that JSON can hold, cut unless `full`."""
    if isinstance(value, str) and not full and len(value) > CUT_CHARACTERS:
        return value[:CUT_CHARACTERS] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        items = [_plain(item, full) for item in (value if full else value[:CUT_ITEMS])]
        return items if len(items) == len(value) else {"count": len(value), "first": items}
    if isinstance(value, dict):
        return {key: _plain(item, full) for key, item in value.items()}
    return value


def _print_tables(checkpoint: Checkpoint, console: Console, *, tensors: bool, full: bool) -> None:
    totals = type_totals(checkpoint.tensors)
    console.print(_summary_table(checkpoint, totals))
    console.print(_types_table(totals))
    console.print(_metadata_table(checkpoint.metadata, full))
    if tensors:
        console.print(_tensors_table(checkpoint.tensors))
    else:
        console.print(f"{len(checkpoint.tensors)} tensors; --tensors lists them", style="dim")


def _summary_table(checkpoint: Checkpoint, totals: dict[str, TypeTotal]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    parameters = sum(total.parameters for total in totals.values())
    table.add_row("file", _text(str(checkpoint.path)))
    table.add_row("format", checkpoint.kind)
    table.add_row("architecture", _text(checkpoint.architecture))
    table.add_row("parameters", f"{parameters:,} ({parameters / 1e6:,.1f} M)")
    table.add_row("size", f"{checkpoint.file_bytes:,} bytes ({checkpoint.file_bytes / 1e6:,.1f} MB)")
    table.add_row("bits per weight", f"{_bits_per_weight(totals.values()):.2f}")
    layers = layers_of(checkpoint)
    if layers.get("recurrent_layers"):
        kinds = f"{layers['attention_layers']} with attention, {layers['recurrent_layers']} recurrent"
        table.add_row("layers", f"{kinds}, whose state takes {layers['state_bytes'] / 1e6:,.1f} MB a sequence")
    if layers.get("left_out"):
        table.add_row("not served", ", ".join(layers["left_out"]))
    if layers.get("head"):
        table.add_row("MTP head", _text(layers["head"]))
    found = obstacles(checkpoint)
    table.add_row("can be served", _text("yes" if not found else "no: " + "; ".join(found)))
    return table


def _types_table(totals: dict[str, TypeTotal]) -> Table:
    table = Table("type", title="Types", title_justify="left")
    for heading in ("tensors", "parameters", "bytes", "share", "bits/weight"):
        table.add_column(heading, justify="right")
    whole = sum(total.bytes for total in totals.values()) or 1
    for name, total in totals.items():
        share, bits = f"{100 * total.bytes / whole:.1f} %", f"{_bits_per_weight([total]):.2f}"
        table.add_row(name, f"{total.tensors:,}", f"{total.parameters:,}", f"{total.bytes:,}", share, bits)
    return table


def _metadata_table(metadata: Mapping[str, Any], full: bool) -> Table:
    table = Table(title="Metadata", title_justify="left")
    table.add_column("key", overflow="fold")
    table.add_column("value", overflow="fold")
    for key, value in metadata.items():
        table.add_row(_text(key), _text(_shown(value, full)))
    return table


def _shown(value: Any, full: bool) -> str:
    """A value on a line or two."""
    plain = _plain(value, full)
    if isinstance(plain, str):
        return plain
    if isinstance(value, list) and isinstance(plain, dict):
        return f"{plain['count']:,} items: {_shown(plain['first'], full)}"
    text = json.dumps(plain, ensure_ascii=False)
    return text if full else str(_plain(text, full))


def _tensors_table(tensors: Mapping[str, RawTensor]) -> Table:
    table = Table(title="Tensors, shapes row-major", title_justify="left")
    table.add_column("name", overflow="fold")
    table.add_column("type")
    table.add_column("shape", justify="right")
    table.add_column("bytes", justify="right")
    for tensor in tensors.values():
        shape = " × ".join(str(extent) for extent in tensor.shape)
        table.add_row(_text(tensor.name), tensor.type, shape, f"{tensor.num_bytes:,}")
    return table


def _text(value: str) -> Text:
    """A file's own words: no markup, and control characters shown instead of obeyed by the terminal."""
    return Text("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in value))
