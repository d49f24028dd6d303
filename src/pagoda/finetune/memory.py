"""What this process holds of memory, and giving back what it does not use."""

from __future__ import annotations

import ctypes
import resource
import sys


def peak_memory() -> int:
    """Most bytes that this process has held so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def give_back_memory() -> None:
    """Ask glibc to return free pages to the OS; elsewhere nothing.

    Of what torch allocates in a training step, glibc keeps hundreds of MB in holes between what lives on, and more with
    each step.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
