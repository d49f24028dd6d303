"""What a judge is asked. Their digest is part of every result: a changed prompt makes another instrument.

Passages stand first, so that all questions about one case share their KV through the prefix cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

Messages = list[dict[str, str]]

SUPPORTS = "Is this answer stated in the passages? Reply with yes or no."
ANSWERS = "Does the answer address the question, rather than avoid it or talk of something else? Reply with yes or no."
PREFERS = "Which answer is better? Reply with A or B."
AGREE = "Do both answers tell the person the same thing? Reply with yes or no."
CLAIMS = (
    "Split the answer into its separate statements of fact. Each must be a full sentence that can be understood alone. "
    "Add nothing that the answer does not say. Reply with JSON: a list of strings."
)
NOTHING = "(no passages)"


def join_passages(passages: Sequence[str]) -> str:
    """Numbered, so that a judge can tell where one ends."""
    return "\n\n".join(f"[{i}] {passage.strip()}" for i, passage in enumerate(passages, 1)) or NOTHING


def supports(passages: Sequence[str], question: str, claim: str) -> Messages:
    return _user(f"Passages:\n{join_passages(passages)}\n\nQuestion: {question}\nAnswer: {claim}\n\n{SUPPORTS}")


def knows(question: str, claim: str) -> Messages:
    """The same question without passages: what the judge believes anyway."""
    return supports((), question, claim)


def answers(question: str, answer: str) -> Messages:
    return _user(f"Question: {question}\nAnswer: {answer}\n\n{ANSWERS}")


def prefers(question: str, first: str, second: str) -> Messages:
    return _user(f"Question: {question}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n{PREFERS}")


def agree(question: str, first: str, second: str) -> Messages:
    return _user(f"Question: {question}\n\nFirst answer: {first}\n\nSecond answer: {second}\n\n{AGREE}")


def claims(question: str, answer: str) -> Messages:
    return _user(f"Question: {question}\nAnswer: {answer}\n\n{CLAIMS}")


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def digest() -> str:
    """SHA-256 of all that a judge is asked, sixteen digits."""
    wording = [supports(("P",), "Q", "A"), answers("Q", "A"), prefers("Q", "A", "B"), claims("Q", "A")]
    return hashlib.sha256(repr(wording).encode()).hexdigest()[:16]
