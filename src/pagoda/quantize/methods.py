"""The table of methods: a row says what `--to NAME` makes and which function makes it.

A method is a function of a `Job`. It writes what it makes below `job.work`, a folder of its own that survives an
interrupt, and returns the path of the finished file or folder inside of it; `pagoda.quantize.run` gives that its final
name. A method that finds its own unfinished work of the same job in `job.work` goes on from there.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagoda.errors import ConfigError
from pagoda.quantize.mixes import MIXES
from pagoda.quantize.settings import QuantizeSettings

# Told of what is being done: steps done and steps in all (None: unknown).
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What a method is asked to do."""

    source: Path  # a GGUF file or a Hugging Face folder
    work: Path  # exists; the method's own until the job is finished
    name: str  # the method's row
    settings: QuantizeSettings
    progress: Progress
    say: Callable[[str], None]  # a line for the user


@dataclass(frozen=True, slots=True)
class Method:
    """`target` is module:function, imported when it is used; the function takes a Job and returns a Path."""

    target: str
    about: str
    suffix: str = ""  # of the output's name; none: a folder

    def run(self, job: Job) -> Path:
        module, function = self.target.split(":")
        path: Path = getattr(importlib.import_module(module), function)(job)
        return path


METHODS: dict[str, Method] = {
    **{name: Method("pagoda.quantize.gguf:quantize", mix.about, ".gguf") for name, mix in MIXES.items()},
    "gguf": Method("pagoda.quantize.gguf:keep", "quantized folder's codes as they are, in GGUF's blocks", ".gguf"),
    "safetensors": Method("pagoda.quantize.to_folder:write_folder", "Hugging Face folder of plain floats, by --dtype"),
    "gptq": Method("pagoda.quantize.checkpoints:gptq", "GPTQ folder: 2, 3, 4 or 8 bits, errors made up for on a text"),
    "awq": Method("pagoda.quantize.checkpoints:awq", "AutoAWQ folder: 4 bits, columns scaled by what they meet"),
    "nf4": Method("pagoda.quantize.checkpoints:nf4", "bitsandbytes folder: 4 bits on uneven levels, for QLoRA"),
    "int8": Method("pagoda.quantize.checkpoints:int8", "compressed-tensors folder: W8A8, 8 bits a row"),
}


def find_method(name: str) -> Method:
    """The row of `--to NAME`, whose case does not matter. ConfigError names what comes close."""
    if (key := name.lower()) in METHODS:
        return METHODS[key]
    near = difflib.get_close_matches(key, METHODS, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
    raise ConfigError(f"--to: there is no method {name!r}; {hint}")
