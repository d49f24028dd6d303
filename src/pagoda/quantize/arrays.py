"""Arrays of numpy or torch: rounding is written once, in functions that both have under one name and meaning."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any
Doubles = npt.NDArray[np.float64]


def namespace(x: Array) -> Any:
    """The module whose array x is."""
    return np if isinstance(x, np.ndarray) else importlib.import_module("torch")


def copied(x: Array) -> Array:
    return x.copy() if isinstance(x, np.ndarray) else x.clone()


def fetched(x: Array) -> npt.NDArray[Any]:
    """x in numpy, with its rows in order."""
    return np.ascontiguousarray(x if isinstance(x, np.ndarray) else x.cpu().numpy())


def floats(x: Array) -> Array:
    xp = namespace(x)
    return xp.asarray(x, dtype=xp.float32)
