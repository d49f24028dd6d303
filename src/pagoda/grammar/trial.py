"""Grammars that could take llguidance very long are compiled in a process of their own first, which can be ended.

Compiling cannot be interrupted, and intersections make it exponential: thirty patterns that one string has to match
keep it busy for hours. So a grammar that holds intersections, or is long, has to prove itself: in the other process it
gets half a second of computing time and 2 GiB. It needs no vocabulary: what takes long does not depend on one.
"""

from __future__ import annotations

import subprocess
import sys

from pagoda.errors import RequestError

SECONDS = 0.5  # of computing time
MAX_WAIT = 60.0  # seconds, on a machine that has no time for it
MAX_BYTES = 2 * 1024**3
LONG = 32 * 1024  # characters
INTERSECTIONS = ('"allOf"', '"patternProperties"', "&", "~")  # as schemas and Lark write them

_PROGRAM = f"""
import os, resource, signal, sys
sys.path[:] = sys.argv[1:]
os.nice(10)
import llguidance
signal.setitimer(signal.ITIMER_PROF, {SECONDS})
try:
    resource.setrlimit(resource.RLIMIT_AS, ({MAX_BYTES}, {MAX_BYTES}))
except (OSError, ValueError):  # macOS knows no such limit
    pass
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
llguidance.LLMatcher(llguidance.LLTokenizer("byte"), sys.stdin.buffer.read().decode(), log_level=0)
os._exit(0)
"""


def is_risky(text: str) -> bool:
    """Whether a grammar, written for llguidance, may take long to compile."""
    return len(text) > LONG or any(mark in text for mark in INTERSECTIONS)


def try_out(text: str) -> None:
    """Compile the grammar in another process. RequestError where that is not done in time; other errors pass."""
    command = [sys.executable, "-S", "-E", "-c", _PROGRAM, *filter(None, sys.path)]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=MAX_WAIT)
    except subprocess.TimeoutExpired:
        raise _too_complex() from None
    if done.returncode < 0:  # ended by a signal: out of time or memory, or it recursed too deep
        raise _too_complex()


def _too_complex() -> RequestError:
    return RequestError(
        f"the grammar is too complex: it takes more than {SECONDS} s to compile. Intersections, as of allOf with "
        "several patterns, cost the most"
    )
