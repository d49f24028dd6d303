"""Drafts of test cases from documents, for a person to review: questions that one passage answers, that take two, and
that none answers.

A draft is kept where the judge itself finds its answer in the passage it was made from (or, for an unanswerable one,
does not), so what a small model makes up falls away.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pagoda.errors import SourceError
from pagoda.evals.judge import Judge
from pagoda.evals.prompts import Messages, join_passages

Kind = Literal["one passage", "two passages", "unanswerable"]

PASSAGE_CHARS = 900
LEAST_CHARS = 200  # shorter rests are headings and scraps
SUFFIXES = (".md", ".txt", ".rst")
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
ASKS: dict[Kind, str] = {
    "one passage": "Write a question that the passage answers, and its answer in a few words.",
    "two passages": "Write a question that takes both passages to answer, and its answer in a few words.",
    "unanswerable": "Write a question on the passage's topic that it does not answer; its answer is 'not stated'.",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A case with the kind of question that it is."""

    kind: Kind
    question: str
    answer: str
    passages: tuple[str, ...]

    def as_line(self, number: int) -> dict[str, Any]:
        answerable = self.kind != "unanswerable"
        return {
            "id": f"draft-{number}",
            "question": self.question,
            "reference": self.answer if answerable else "The documents do not say.",
            "reference_contexts": list(self.passages) if answerable else [],
            "kind": self.kind,
            "reviewed": False,
        }


def read_passages(folder: Path) -> list[str]:
    """Paragraphs of all text files below a folder (or of one file), joined to passages. Raises SourceError."""
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES)
    passages = [passage for file in files for passage in split_passages(file.read_text(errors="replace"))]
    if not passages:
        raise SourceError(f"{folder} holds no text: {', '.join(SUFFIXES)} files of {LEAST_CHARS} characters at least")
    return passages


def split_passages(text: str) -> Iterator[str]:
    """Whole paragraphs, as many as fit in `PASSAGE_CHARS`; a longer one is a passage of its own."""
    passage = ""
    for paragraph in (part.strip() for part in text.split("\n\n")):
        if passage and len(passage) + len(paragraph) > PASSAGE_CHARS:
            if len(passage) >= LEAST_CHARS:
                yield passage
            passage = ""
        passage = f"{passage}\n\n{paragraph}".strip()
    if len(passage) >= LEAST_CHARS:
        yield passage


def tries(count: int) -> int:
    """How often a draft is asked for, at most, so that `count` are kept."""
    return 4 * count + 5


async def draft_cases(judge: Judge, passages: list[str], count: int, seed: int = 0) -> AsyncIterator[Draft]:
    """At most `count` drafts: of five, three of one passage, one of two neighbours, one that is unanswerable."""
    rng = random.Random(seed)
    kinds: list[Kind] = ["one passage", "one passage", "two passages", "one passage", "unanswerable"]
    seen: set[str] = set()
    made = 0
    for number in range(tries(count)):
        kind = kinds[number % len(kinds)]
        at = rng.randrange(len(passages))
        chosen = tuple(passages[at : at + (2 if kind == "two passages" else 1)])
        draft = await _draft(judge, kind, chosen)
        if draft is not None and draft.question.lower() not in seen and await _holds(judge, draft):
            seen.add(draft.question.lower())
            made += 1
            yield draft
        if made == count:
            return


async def _draft(judge: Judge, kind: Kind, passages: tuple[str, ...]) -> Draft | None:
    messages: Messages = [{"role": "user", "content": f"{join_passages(passages)}\n\n{ASKS[kind]} Reply with JSON."}]
    text = await judge.write_json(messages, "case", SCHEMA, max_tokens=200)
    try:
        found = json.loads(text)
        question, answer = str(found["question"]).strip(), str(found["answer"]).strip()
    except (ValueError, KeyError, TypeError):
        return None
    return Draft(kind, question, answer, passages) if question.endswith("?") and answer else None


async def _holds(judge: Judge, draft: Draft) -> bool:
    probability = await judge.supports(draft.passages, draft.question, draft.answer)
    return probability <= 0.5 if draft.kind == "unanswerable" else probability > 0.5
