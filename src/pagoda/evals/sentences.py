"""Text as evaluators see it: sentences, words, names and numbers, refusals. No model needed."""

from __future__ import annotations

import re
from collections import Counter

ABBREVIATIONS = {"dr", "mr", "mrs", "ms", "prof", "st", "vs", "etc", "e.g", "i.e", "no", "fig", "inc", "jr", "sr"}
_END = re.compile(r"(?<=[.!?。！？])[\"')\]]*\s+(?=[\"'(\[]?[^\sa-z])|\n+")
_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_ENTITY = re.compile(r"\d[\d.,:/-]*\d|\d|\b[^\W\d_a-z][\w'-]*(?:\s+[^\W\d_a-z][\w'-]*)*")
_REFUSALS = re.compile(
    r"\b(i (do not|don't|cannot|can't|am unable|'m unable|am not able|'m not able)\b|"
    r"(not|n't) (know|mentioned|stated|provided|(contain |provide |give |have )?enough information)|"
    r"no information|insufficient information|unable to (answer|determine))",
    re.IGNORECASE,
)
REFUSAL_WORDS = 30  # longer answers that contain a refusal say something besides


def split_sentences(text: str) -> list[str]:
    """Sentences and lines; a stop after an abbreviation or an initial ends none."""
    parts: list[str] = []
    for part in _END.split(text):
        piece = part.strip()
        if not piece:
            continue
        if parts and _ends_in_abbreviation(parts[-1]):
            parts[-1] += f" {piece}"
        else:
            parts.append(piece)
    return parts


def _ends_in_abbreviation(text: str) -> bool:
    last = text.rsplit(None, 1)[-1].lower().strip("(\"'")
    return last.endswith(".") and (last[:-1] in ABBREVIATIONS or len(last) == 2)


def words(text: str) -> set[str]:
    """Lower-case words and numbers."""
    return set(_WORD.findall(text.lower()))


def share_together(claim: str, text: str) -> float:
    """The largest share of a claim's words that stands in a stretch of the text three times as long as the claim."""
    wanted = words(claim)
    if not wanted:
        return 0.0
    found = _WORD.findall(text.lower())
    length = 3 * len(wanted)
    inside: Counter[str] = Counter()
    most = 0
    for i, word in enumerate(found):
        if word in wanted:
            inside[word] += 1
        if i >= length and (left := found[i - length]) in wanted:
            inside[left] -= 1
            if not inside[left]:
                del inside[left]
        most = max(most, len(inside))
    return most / len(wanted)


def word_counts(text: str) -> Counter[str]:
    """Lower-case words and numbers with how often they occur."""
    return Counter(_WORD.findall(text.lower()))


def entities(text: str) -> set[str]:
    """Numbers, dates and capitalized names, in lower case. The first word of a sentence alone is none."""
    found = set()
    for sentence in split_sentences(text):
        for match in _ENTITY.finditer(sentence):
            name = match.group().strip(".,:/-")
            if match.start() > 0 or name[:1].isdigit() or " " in name:
                found.add(name.lower())
    return found


def is_refusal(text: str) -> bool:
    """Whether an answer is empty or says that it has none."""
    return not text.strip() or (len(text.split()) <= REFUSAL_WORDS and bool(_REFUSALS.search(text)))
