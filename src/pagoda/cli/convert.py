"""`pagoda convert`: the same model in another kind of file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pagoda.cli.making import DEFAULT_MODEL, ModelArgument, OutputOption, find, make
from pagoda.cli.options import with_settings
from pagoda.errors import ConfigError
from pagoda.quantize.settings import QuantizeSettings
from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class ConvertSettings(Settings):
    """Flags of `pagoda convert`."""

    table = "convert"

    to: Annotated[
        Literal["gguf", "safetensors"] | None,
        Setting("Kind of files; by default gguf if OUT ends in .gguf, else safetensors."),
    ] = None
    dtype: Annotated[
        Literal["bf16", "f16", "f32", "keep"] | None,
        Setting("Number type of the weights; keep: quantized layers stay so. [default: keep to GGUF, else bf16]"),
    ] = None
    threads: Annotated[int, Setting("Compute threads; 0: one per physical core allowed.", minimum=0)] = 0
    verify: Annotated[bool, Setting("Compare the result with its source before it gets its name.")] = True
    force: Annotated[bool, Setting("Replace an output that exists.")] = False


@with_settings
def convert(convert: ConvertSettings, model: ModelArgument = DEFAULT_MODEL, output: OutputOption = None) -> None:
    """Turn GGUF files into Hugging Face folders and the other way round, tokenizer and chat template included.

    Layers of GPTQ, AWQ and the like become GGUF blocks of the same codes where such blocks exist, else 8 bits, and what
    that adds in error is said. With --dtype they become floats, as quantized GGUF tensors do in a folder.
    To make a model smaller: pagoda quantize --help
    """
    found = find(model)
    gguf = convert.to == "gguf" or (convert.to is None and output is not None and output.suffix == ".gguf")
    dtype = convert.dtype or ("keep" if gguf else "bf16")
    if dtype == "keep" and not gguf:
        raise ConfigError("--dtype keep: a folder of GGUF's blocks does not exist; take bf16, f16 or f32")
    target = output or Path(found.name + ("" if dtype == "keep" else f"-{dtype}") + (".gguf" if gguf else ""))
    floats = "bf16" if dtype == "keep" else dtype
    to = ("gguf" if dtype == "keep" else dtype) if gguf else "safetensors"
    settings = QuantizeSettings(
        to=to, dtype=floats, threads=convert.threads, verify=convert.verify, force=convert.force
    )
    make(found, target, settings)
