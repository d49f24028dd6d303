"""What is evaluated: a case is a question with whatever is known of it, a line of a JSONL file.

    {"id": "7", "question": "…", "answer": "…", "contexts": ["…"], "reference": "…"}

RAGAS's names for the same things are read too (`user_input`, `response`, `retrieved_contexts`, `ground_truth`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from pagoda.errors import FormatError

SPELLINGS = {
    "question": ("question", "user_input", "query", "prompt"),
    "answer": ("answer", "response"),
    "contexts": ("contexts", "retrieved_contexts"),
    "reference": ("reference", "ground_truth", "expected"),
    "reference_contexts": ("reference_contexts", "relevant"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One question. What a metric needs and a case lacks is an error of that metric for that case, not a zero."""

    id: str
    question: str
    answer: str | None = None  # what the pipeline said
    contexts: tuple[str, ...] | None = None  # the passages that it said it from, best first
    reference: str | None = None  # the right answer
    reference_contexts: tuple[str, ...] | None = None  # the passages that say so
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields of the line that no name above covers

    def answered(self, answer: str, contexts: tuple[str, ...] | None) -> Case:
        """The case with what a pipeline answered now."""
        return replace(self, answer=answer, contexts=self.contexts if contexts is None else contexts)


@dataclass(frozen=True, slots=True)
class Testset:
    """Cases with unique ids, and the digest of what was asked: questions, references, not the answers."""

    cases: tuple[Case, ...]
    sha256: str


def read_testset(path: Path) -> Testset:
    """Read a JSONL file. FormatError names the line of whatever is not a case; so does one without any."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=str(path)) from None
    cases = [_parse(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    if not cases:
        raise FormatError("holds no cases", path=str(path))
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise FormatError(f"two cases have the id {case.id!r}", path=str(path))
        seen.add(case.id)
    asked = [[case.id, case.question, case.reference, case.reference_contexts] for case in cases]
    return Testset(tuple(cases), hashlib.sha256(orjson.dumps(asked)).hexdigest())


def _parse(line: bytes, number: int, path: Path) -> Case:
    where = f"line {number}"
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise FormatError(f"{where} is not JSON: {error}", path=str(path)) from None
    if not isinstance(record, dict):
        raise FormatError(f"{where} is not an object", path=str(path))
    found = {name: _take(record, spellings) for name, spellings in SPELLINGS.items()}
    question = found["question"]
    if not isinstance(question, str) or not question.strip():
        raise FormatError(f"{where} has no question", path=str(path))
    return Case(
        str(record.pop("id", number)),
        question,
        _text(found["answer"], f"{where}: answer", path),
        _texts(found["contexts"], f"{where}: contexts", path),
        _text(found["reference"], f"{where}: reference", path),
        _texts(found["reference_contexts"], f"{where}: reference_contexts", path),
        record,
    )


def _take(record: dict[str, Any], spellings: tuple[str, ...]) -> Any:
    return next((value for name in spellings if (value := record.pop(name, None)) is not None), None)


def _text(value: Any, where: str, path: Path) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise FormatError(f"{where} is not text", path=str(path))


def _texts(value: Any, where: str, path: Path) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise FormatError(f"{where} is not a list of texts", path=str(path))
