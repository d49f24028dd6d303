"""Training without what its libraries import wherever it happens to be installed.

Beside the packages that training is made of, peft imports bitsandbytes, some of it late, and transformers' Trainer
datasets, with pyarrow and pandas: 200 MB of memory that a run here never uses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("bitsandbytes", "datasets", "pandas", "pyarrow", "sklearn", "scipy", "tensorboard")


@contextmanager
def without_unused() -> Iterator[None]:
    """Meanwhile, importing any of UNUSED finds nothing. What this process has imported already stays."""
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importing it raises
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
