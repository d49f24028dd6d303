"""What a quantization method is asked to do.

A method is a function of a `Job`. It writes what it makes below `job.work`, a folder of its own that survives an
interrupt, and returns the path of the finished file or folder inside of it; `pagoda.quantize.run` gives that its final
name. A method that finds its own unfinished work of the same job in `job.work` goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
