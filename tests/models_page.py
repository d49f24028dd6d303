"""docs/models.md: which models are served, from what files, and what that was compared with. Made of the registry.

PYTHONPATH=src:tests python tests/models_page.py > docs/models.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pagoda import _native
from pagoda.formats.blocks import BLOCK_TYPES, UNREAD_TYPES, BlockType
from pagoda.formats.quant_methods import METHODS
from pagoda.models.family import Family
from pagoda.models.planned import PLANNED
from pagoda.models.registry import FAMILIES
from pagoda.plan.model.models import builtin_model_types
from tiny_specs import TINY

GOLDENS = Path(__file__).parent / "reference" / "goldens"

HEAD = """# Models

This file is written by `python tests/models_page.py > docs/models.md`, and a test compares it with the code. What a
file at hand lacks, `pagoda inspect FILE` says.

## Families

Each is read from Hugging Face folders (`model_type` of config.json, safetensors) and from GGUF files
(`general.architecture`); text only. Sizes are those that `pagoda plan` knows by name: others of the family are served
alike. Logits of small random models were compared with those of `transformers`, in float32 (`tests/reference`).

| config.json | GGUF | sizes known | compared with | left out |
|---|---|---|---|---|"""

PLANNED_HEAD = """
Planned for (`pagoda plan` knows their shapes), and refused by name when served: """

TYPES_HEAD = """
## Block types of GGUF files

Packed: how many bits a weight takes in memory once a model is loaded, scales included. Types that `pagoda quantize`
writes are in [quantization.md](quantization.md).

| type | bits in the file | packed |
|---|---|---|"""

NVFP4_LINE = """NVFP4, 4.5 bits in the file and a factor beside it, is read as quantized folders are: packed, 6.
"""

METHODS_HEAD = """
## Quantized folders

`quant_method` in config.json: """


def markdown() -> str:
    lines = [HEAD, *map(_family, FAMILIES)]
    lines += [PLANNED_HEAD + ", ".join(f"`{family.name}`" for family in PLANNED) + ".", TYPES_HEAD]
    lines += [_type(name, block) for name, block in BLOCK_TYPES.items()]
    lines += [
        "",
        NVFP4_LINE,
        f"Refused by name: {', '.join(UNREAD_TYPES)}.",
        METHODS_HEAD + ", ".join(f"`{m}`" for m in METHODS) + ".",
    ]
    return "\n".join(lines) + "\n"


def _family(family: Family) -> str:
    known = [name for name, model_type in builtin_model_types().items() if model_type == family.name]
    sources = sorted(set(_goldens(family)))
    compared = "; ".join([*sources, *family.compared])
    left = [text for text in dict.fromkeys((*family.left_out.values(), family.not_covered)) if text]
    names = f"`{family.model_type or family.name}` | `{family.gguf}`"
    return f"| {names} | {', '.join(known) or '–'} | {compared} | {'; '.join(left) or '–'} |"


def _goldens(family: Family) -> Iterator[str]:
    """What the family's tiny models were compared with."""
    for name, spec in TINY.items():
        path = GOLDENS / f"{name}.json"
        if spec.config["model_type"].removesuffix("_text") == family.name and path.is_file():
            yield json.loads(path.read_text())["source"].split(",")[0]


def _type(name: str, block: BlockType) -> str:
    packed = _native.Runtime(1).empty_weight(name, 4096, 4096).bytes * 8 / 4096**2
    return f"| {name} | {block.bits_per_weight:.4g} | {packed:.3g} |"


if __name__ == "__main__":
    print(markdown(), end="")
