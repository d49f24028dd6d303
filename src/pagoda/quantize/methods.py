"""The table of methods: a row says what `--to NAME` makes and which function of a `Job` makes it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from pagoda.errors import ConfigError
from pagoda.quantize.folder import floats, quantized
from pagoda.quantize.gguf import make
from pagoda.quantize.gguf.mixes import MIXES
from pagoda.quantize.job import Job
from pagoda.quantize.settings import QuantizeSettings


@dataclass(frozen=True, slots=True)
class Method:
    """One row. `suffix` is that of the output's name; none: the output is a folder."""

    run: Callable[[Job], Path]
    about: str
    suffix: str = ""
    largest_kld: float | None = None  # of a conversion: what rounding explains; None: the method is meant to lose
    reads: frozenset[str] = frozenset()  # those of METHOD_SETTINGS that mean something to it
    goes_on: bool = True  # after an interrupt, from where it was


CALIBRATION = frozenset({"calibration", "calibration_samples", "calibration_tokens"})
GGUF_SETTINGS = frozenset({"imatrix", "save_imatrix", "tensor_type"})
AWQ_SETTINGS = CALIBRATION | {"bits", "group_size"}
GPTQ_SETTINGS = AWQ_SETTINGS | {"symmetric", "act_order", "damping"}
METHOD_SETTINGS = GPTQ_SETTINGS | GGUF_SETTINGS | {"dtype"}

FLOAT_KLD = {"f32": 0.01, "f16": 0.01, "bf16": 0.01}  # measured: below 0.001 for bf16 of an f32 model
REQUANTIZED_KLD = 0.05  # layers of no like block become 8 bits

METHODS: dict[str, Method] = {
    **{
        name: Method(make.quantize, mix.about, ".gguf", FLOAT_KLD.get(name), GGUF_SETTINGS)
        for name, mix in MIXES.items()
    },
    "gguf": Method(make.keep, "quantized folder's codes as they are, in GGUF's blocks", ".gguf", REQUANTIZED_KLD),
    "safetensors": Method(
        floats.write_folder,
        "Hugging Face folder of plain floats, by --dtype",
        "",
        FLOAT_KLD["bf16"],
        frozenset({"dtype"}),
        goes_on=False,
    ),
    "gptq": Method(quantized.gptq, "GPTQ folder: 2, 3, 4 or 8 bits, errors made up for on a text", reads=GPTQ_SETTINGS),
    "awq": Method(quantized.awq, "AutoAWQ folder: 4 bits, columns scaled by what they meet", reads=AWQ_SETTINGS),
    "nf4": Method(quantized.nf4, "bitsandbytes folder: 4 bits on uneven levels, for QLoRA", goes_on=False),
    "int8": Method(quantized.int8, "compressed-tensors folder: W8A8, 8 bits a row", goes_on=False),
}


def check_settings(settings: QuantizeSettings) -> None:
    """ConfigError for a setting that is not its default and that the method of `settings.to` would not look at."""
    reads = find_method(settings.to).reads
    calibrates = reads | CALIBRATION if settings.imatrix == "auto" else reads
    for field in fields(settings):
        if field.name in METHOD_SETTINGS - calibrates and getattr(settings, field.name) != field.default:
            flag = "--" + field.name.replace("_", "-")
            why = " without --imatrix auto" if "imatrix" in reads and field.name in CALIBRATION else ""
            raise ConfigError(f"{flag}: {settings.to.lower()} does not read it{why}; leave it out")
    if settings.save_imatrix is not None and settings.imatrix != "auto":
        raise ConfigError("--save-imatrix keeps the matrix of --imatrix auto, which is missing")


def find_method(name: str) -> Method:
    """The row of `--to NAME`, whose case does not matter. ConfigError names what comes close."""
    if (key := name.lower()) in METHODS:
        return METHODS[key]
    near = difflib.get_close_matches(key, METHODS, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
    raise ConfigError(f"--to: there is no method {name!r}; {hint}")
