"""`pagoda merge`: an adapter becomes part of its model's weights, and what that costs is measured."""

from __future__ import annotations

import json as json_format
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from pagoda.adapters.adapter import Adapter
from pagoda.adapters.files import read_adapter
from pagoda.cli.compare import print_report
from pagoda.cli.making import find, total_bytes
from pagoda.cli.options import with_settings
from pagoda.cli.progress import step_progress
from pagoda.cli.stopped import LOST, when_stopped
from pagoda.quantize.merge import merge as merge_models
from pagoda.quantize.merge import write_merged
from pagoda.quantize.settings import QuantizeSettings
from pagoda.quantize.survival import Survival, survival
from pagoda.scoring import report
from pagoda.scoring.report import Progress, Report
from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class MergeSettings(Settings):
    """Flags of `pagoda merge`."""

    table = "merge"

    to: Annotated[str, Setting("safetensors: a folder of floats; or a format of pagoda quantize, as q4_k_m.")] = (
        "safetensors"
    )
    dtype: Annotated[Literal["bf16", "f16", "f32"], Setting("Number type of the merged weights.")] = "bf16"
    text: Annotated[str, Setting("Text to measure on: self (the base model wrote it), or a file.")] = "self"
    windows: Annotated[int, Setting("Windows of the text at most; 0: nothing is measured.", minimum=0)] = 4
    context: Annotated[int, Setting("Tokens of each window.", minimum=16)] = report.CONTEXT
    json: Annotated[bool, Setting("Print the measurement as JSON.")] = False
    threads: Annotated[int, Setting("Compute threads; 0: one per physical core allowed.", minimum=0)] = 0
    force: Annotated[bool, Setting("Replace an output that exists.")] = False


@with_settings
def merge(
    merge: MergeSettings,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Alias, GGUF file, Hugging Face folder or hf:owner/repo.")
    ],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="PEFT folder or GGUF adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to make.", metavar="OUT")],
) -> None:
    """Merge a LoRA adapter into its model's weights: served without any overhead, and in any format.

    The weights, 16-bit or what quantized ones stand for, are changed in float32 and rounded to --dtype; --to then
    quantizes. What each of these steps costs against the base with its adapter beside it is measured on a text, and
    how much of the adapter's change is left in the weights.

    Example: pagoda merge smollm2-135m adapter/ -o merged.gguf --to q4_k_m
    """
    found = find(model)
    settings = QuantizeSettings(
        to=merge.to, dtype=merge.dtype, threads=merge.threads, force=merge.force, verify=merge.to != "safetensors"
    )
    with when_stopped(LOST), step_progress() as (steps, say):
        merge_models(found.path, adapter, output, settings, progress=steps, say=say)
    typer.echo(f"{output}  {total_bytes(output) / 1e6:,.1f} MB")
    if merge.windows:
        with (
            when_stopped(f"{output} is whole, but was not measured"),
            step_progress() as (steps, _),
            tempfile.TemporaryDirectory(dir=output.parent) as work,
        ):
            measured, left = measure(found.path, read_adapter(adapter), output, merge, Path(work), progress=steps)
        if merge.json:
            survived = {name: asdict(survival) for name, survival in left.items()}
            typer.echo(json_format.dumps({**measured.as_json(), "survival": survived}, indent=2))
        else:
            print_report(measured, Console())
            for name, found_there in left.items():
                typer.echo(f"{name}: {found_there}")


def measure(
    model: Path,
    adapter: Adapter,
    output: Path,
    merge: MergeSettings,
    work: Path,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Report, dict[str, Survival]]:
    """What was made, and each step on the way there, against the model with the adapter beside it; and, of each by its
    name, how much of the adapter is left in the weights.

    An adapter that is not served apart is measured against what it gives when it is merged in float32.
    """
    settings = QuantizeSettings(dtype=merge.dtype, threads=merge.threads)

    def merged(dtype: Literal["bf16", "f16", "f32"]) -> str:
        (work / dtype).mkdir()
        to = replace(settings, dtype=dtype)
        return str(write_merged(model, adapter, work / dtype, to, progress, lambda line: None))

    apart = is_served_apart(adapter)
    rows = {str(model) if apart else merged("f32"): f"{model.name} + {adapter.path.name}"}
    if merge.to != "safetensors" and (apart or merge.dtype != "f32"):
        rows[merged(merge.dtype)] = f"merged, {merge.dtype}"
    rows[str(output)] = output.name
    original, *candidates = rows
    found = report.compare(
        candidates,
        original,
        merge.text,
        windows=merge.windows,
        context=merge.context,
        threads=merge.threads,
        speed=False,
        adapter=adapter.path if apart else None,
        progress=progress,
    )
    named = tuple(replace(row, name=name) for row, name in zip(found.rows, rows.values(), strict=True))
    left = {rows[path]: survival(model, adapter, Path(path)) for path in candidates}
    known = {name: value for name, value in left.items() if value is not None}
    return replace(found, original=named[0].name, rows=named), known


def is_served_apart(adapter: Adapter) -> bool:
    """Whether a server takes it beside its model."""
    linears = all(not delta.is_embedding for delta in adapter.deltas.values())
    return linears and all(name.endswith(".bias") for name in adapter.whole)
