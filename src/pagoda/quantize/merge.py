"""An adapter merged into its model's weights: a folder of floats, and from that any format; and what that has cost.

The changes are added in float32 to the base's own weights, 16-bit ones or what quantized ones stand for, and rounded
once. Merging into codes of four bits would lose most of an adapter: its changes are smaller than their steps.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pagoda.adapters.adapter import Adapter
from pagoda.adapters.files import read_adapter
from pagoda.adapters.merge import MergedView
from pagoda.errors import ConfigError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.quantize.folder.floats import write_view
from pagoda.quantize.job import Job, Progress
from pagoda.quantize.methods import find_method
from pagoda.quantize.run import quantize
from pagoda.quantize.settings import QuantizeSettings


def merge(
    model: Path,
    adapter: Path,
    output: Path,
    settings: QuantizeSettings,
    *,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Merge the adapter into the model, and write what `settings.to` says to `output`: → that.

    `settings.dtype` is the number type of what is merged. Raises FormatError where the adapter was made for another
    model, ConfigError if the output exists, and what `quantize` raises.
    """
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} is no folder; name another output with -o")
    if output.exists() and not settings.force:
        raise ConfigError(f"{output} exists; name another with -o, or replace it with --force")
    find_method(settings.to)
    read = read_adapter(adapter)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
        made = write_merged(model, read, Path(work), settings, progress, say)
        if settings.to.lower() != "safetensors":
            made = quantize(made, Path(work) / "quantized" / output.name, settings, progress=progress, say=say)
        if output.exists():
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        shutil.move(made, output)
    return output


def write_merged(
    model: Path,
    adapter: Adapter,
    work: Path,
    settings: QuantizeSettings,
    progress: Progress,
    say: Callable[[str], None],
) -> Path:
    """The merged model as a folder of floats, below `work`. → the folder"""
    job = Job(model, work, "safetensors", replace(settings, to="safetensors"), progress, say)
    with open_checkpoint(model) as checkpoint:
        say(f"merging {len(adapter.deltas)} changed matrices and {len(adapter.whole)} tensors that were trained whole")
        return write_view(job, checkpoint, MergedView(checkpoint, adapter))
