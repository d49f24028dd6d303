"""`pagoda quantize`: a model in fewer bits, and how much worse that is."""

from __future__ import annotations

from pagoda.cli.answers_gate import GateSettings, answers_gate
from pagoda.cli.making import DEFAULT_MODEL, ModelArgument, OutputOption, find, make
from pagoda.cli.options import with_settings
from pagoda.quantize.methods import METHODS, check_settings
from pagoda.quantize.run import default_output
from pagoda.quantize.settings import QuantizeSettings


@with_settings
def quantize(
    quantize: QuantizeSettings,
    gate: GateSettings,
    model: ModelArgument = DEFAULT_MODEL,
    output: OutputOption = None,
) -> None:
    check_settings(quantize)
    found = find(model)
    make(
        found,
        output or default_output(found.name, quantize),
        quantize,
        answers_gate(found.path, gate, quantize.threads),
    )


DOC = """Make a model smaller: GGUF files by block formats, folders by GPTQ, AWQ and the like.

Tensors whose rows a format's blocks do not divide get the nearest format that fits, said aloud. After an interrupt
the same command goes on where it was, but for nf4, int8 and safetensors, which begin anew.

Formats and methods for --to:

\b
"""
quantize.__doc__ = DOC + "\n".join(f"{name:<12}{method.about}" for name, method in METHODS.items())
