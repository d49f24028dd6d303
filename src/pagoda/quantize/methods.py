"""The table of methods: a row says what `--to NAME` makes and which function of a `Job` makes it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagoda.errors import ConfigError
from pagoda.quantize.folder import floats, quantized
from pagoda.quantize.gguf import make
from pagoda.quantize.gguf.mixes import MIXES
from pagoda.quantize.job import Job


@dataclass(frozen=True, slots=True)
class Method:
    """One row. `suffix` is that of the output's name; none: the output is a folder."""

    run: Callable[[Job], Path]
    about: str
    suffix: str = ""
    largest_kld: float | None = None  # of a conversion: what rounding explains; None: the method is meant to lose


FLOAT_KLD = {"f32": 0.01, "f16": 0.01, "bf16": 0.01}  # measured: below 0.001 for bf16 of an f32 model
REQUANTIZED_KLD = 0.05  # layers of no like block become 8 bits

METHODS: dict[str, Method] = {
    **{name: Method(make.quantize, mix.about, ".gguf", FLOAT_KLD.get(name)) for name, mix in MIXES.items()},
    "gguf": Method(make.keep, "quantized folder's codes as they are, in GGUF's blocks", ".gguf", REQUANTIZED_KLD),
    "safetensors": Method(
        floats.write_folder, "Hugging Face folder of plain floats, by --dtype", "", FLOAT_KLD["bf16"]
    ),
    "gptq": Method(quantized.gptq, "GPTQ folder: 2, 3, 4 or 8 bits, errors made up for on a text"),
    "awq": Method(quantized.awq, "AutoAWQ folder: 4 bits, columns scaled by what they meet"),
    "nf4": Method(quantized.nf4, "bitsandbytes folder: 4 bits on uneven levels, for QLoRA"),
    "int8": Method(quantized.int8, "compressed-tensors folder: W8A8, 8 bits a row"),
}


def find_method(name: str) -> Method:
    """The row of `--to NAME`, whose case does not matter. ConfigError names what comes close."""
    if (key := name.lower()) in METHODS:
        return METHODS[key]
    near = difflib.get_close_matches(key, METHODS, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
    raise ConfigError(f"--to: there is no method {name!r}; {hint}")
