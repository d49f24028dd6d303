"""Which family reads which architecture: a row each. A clone of a family is a row, never a copy."""

from __future__ import annotations

from collections.abc import Callable

from pagoda.backends.base import ForwardModel
from pagoda.errors import UnsupportedError
from pagoda.models import gemma3, llama, mistral, qwen2, qwen3
from pagoda.models.source import Checkpoint

# By `Checkpoint.architecture`: GGUF's own, or the model_type of config.json.
FAMILIES: dict[str, Callable[[Checkpoint], ForwardModel]] = {
    "llama": llama.build,
    "mistral": mistral.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
    "gemma3": gemma3.build,
}


def load_model(checkpoint: Checkpoint) -> ForwardModel:
    """The checkpoint's model, its tensors still as they lie in the file.

    Raises UnsupportedError for an architecture that is not in the table or a tensor that the family does not use;
    FormatError for settings that cannot be, and for tensors that are missing or of the wrong shape.
    """
    build = FAMILIES.get(checkpoint.architecture)
    if build is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(f"architecture {checkpoint.architecture!r} is not supported; supported: {known}")
    return build(checkpoint)
