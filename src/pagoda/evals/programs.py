"""Scores that a program decides: a pattern, a JSON schema, code that must pass its tests. And which answer is better.

What a case needs stands in its line: "pattern", "schema", or "tests" (Python that fails by raising).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

from pagoda.evals.cases import Case
from pagoda.evals.evaluators import Asking, Score, Unjudged, evaluator

FENCE = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)
CODE_SECONDS = 10
CODE_BYTES = 1 << 30  # of address space
LIMITS = (
    "import resource as r; r.setrlimit(r.RLIMIT_CPU, ({s}, {s})); r.setrlimit(r.RLIMIT_AS, ({b}, {b})); "
    "r.setrlimit(r.RLIMIT_FSIZE, (0, 0)); r.setrlimit(r.RLIMIT_NPROC, (0, 0))\n"
)


@evaluator("regex")
def regex(case: Case) -> float:
    """Whether the case's pattern occurs in the answer."""
    pattern = _extra(case, "pattern", str)
    try:
        return float(re.search(pattern, case.answer or "") is not None)
    except re.error as error:
        raise Unjudged(f"the case's pattern is not a regular expression: {error}") from None


@evaluator("json_schema")
def json_schema(case: Case) -> Score:
    """Whether the answer, or the fenced block in it, is JSON that its schema allows."""
    try:
        import jsonschema
    except ImportError:
        raise Unjudged("jsonschema is not installed: pip install jsonschema") from None
    schema = _extra(case, "schema", dict)
    try:
        jsonschema.validate(json.loads(_block(case.answer or "")), schema)
    except jsonschema.SchemaError as error:
        raise Unjudged(f"the case's schema is not one: {error.message}") from None
    except (ValueError, jsonschema.ValidationError) as error:
        return Score(0.0, ({"error": getattr(error, "message", str(error))},))
    return Score(1.0)


@evaluator("code")
def code(case: Case) -> Score:
    """Whether the answer's Python passes the case's tests, in a process of its own with limits.

    It gets ten seconds, a gigabyte and no environment, and may neither write files nor start processes. That stops
    accidents, not attacks: run code of strangers in a container.
    """
    limits = LIMITS.format(s=CODE_SECONDS, b=CODE_BYTES) if sys.platform != "win32" else ""
    program = f"{limits}{_block(case.answer or '')}\n{_extra(case, 'tests', str)}\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-"],
                input=program,
                cwd=folder,
                env={},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=2 * CODE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Score(0.0, ({"error": f"took more than {2 * CODE_SECONDS} s"},))
    if done.returncode == 0:
        return Score(1.0)
    return Score(0.0, ({"error": done.stderr.strip().rsplit("\n", 1)[-1][:500] or f"exit status {done.returncode}"},))


@evaluator("preference", needs=("answer", "reference"), judged=True)
async def preference(case: Case, judge: Asking) -> float:
    """The probability that the answer is better than the reference; one half where they are as good."""
    return await judge.prefers(case.question, case.answer or "", case.reference or "")


def _block(text: str) -> str:
    """The first fenced block, or all of it."""
    match = FENCE.search(text)
    return match.group(1) if match else text


def _extra(case: Case, name: str, kind: type) -> Any:
    value = case.extra.get(name)
    if not isinstance(value, kind):
        raise Unjudged(f"the case has no {name}")
    return value
