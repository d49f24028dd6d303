"""A small RAG application: BM25 finds passages, a model answers from them. `answer` is what the gate evaluates.

    pagoda eval run testset.jsonl --target app:answer --metrics contains,token_f1,hit_rate,mrr -o current.json

RAG_MODEL, RAG_DOCUMENTS and RAG_PROMPT replace its parts, which is what a change to the application would do.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections import Counter
from functools import cache
from pathlib import Path

from pagoda import LLM, SamplingParams

HERE = Path(__file__).parent
TOP = 1  # passages that the model gets to see: a small one is led astray by more
K1, B = 1.2, 0.75  # BM25's usual settings
_one_at_a_time = threading.Lock()


def answer(question: str) -> dict[str, object]:
    """The answer, and the passages that it was made from."""
    contexts = index().search(question)
    prompt = Path(os.environ.get("RAG_PROMPT", HERE / "prompt.txt")).read_text()
    text = prompt.format(passages="\n".join(contexts), question=question)
    with _one_at_a_time:
        (output,) = model().chat([{"role": "user", "content": text}], SamplingParams(temperature=0, max_tokens=40))
    return {"answer": output.outputs[0].text.strip(), "contexts": contexts}


@cache
def model() -> LLM:
    return LLM(os.environ.get("RAG_MODEL", "smollm2-135m"))


@cache
def index() -> Index:
    return Index(Path(os.environ.get("RAG_DOCUMENTS", HERE / "documents")))


class Index:
    """Paragraphs of Markdown files, ranked by BM25 (Robertson and Zaragoza, 2009); headings count with each."""

    def __init__(self, folder: Path) -> None:
        self._passages: list[str] = []
        self._counts: list[Counter[str]] = []
        for path in sorted(folder.glob("*.md")):
            heading = ""
            for paragraph in path.read_text().split("\n\n"):
                if paragraph.startswith("#"):
                    heading = paragraph
                    continue
                self._passages.append(" ".join(paragraph.split()))
                self._counts.append(Counter(_words(f"{heading} {paragraph}")))
        self._mean = sum(counts.total() for counts in self._counts) / len(self._counts)
        self._in_passages = Counter(word for counts in self._counts for word in counts)

    def search(self, question: str) -> list[str]:
        words = set(_words(question))
        order = sorted(range(len(self._passages)), key=lambda i: -self._score(words, self._counts[i]))
        return [self._passages[i] for i in order[:TOP]]

    def _score(self, words: set[str], counts: Counter[str]) -> float:
        length = 1 - B + B * counts.total() / self._mean
        return sum(self._rarity(word) * counts[word] * (K1 + 1) / (counts[word] + K1 * length) for word in words)

    def _rarity(self, word: str) -> float:
        found = self._in_passages[word]
        return math.log(1 + (len(self._counts) - found + 0.5) / (found + 0.5))


def _words(text: str) -> list[str]:
    """Lower-case words, without the endings that forms of one word differ in."""
    return [re.sub(r"(ing|ed|es|s|e)$", "", word) for word in re.findall(r"\w+", text.lower())]
