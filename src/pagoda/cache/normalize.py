"""The form that a question shares with those that differ from it in nothing that could matter.

Case, spacing, punctuation that ends or divides sentences, and politeness go; signs that carry meaning (C++, C#, 1.5,
-5, a/b) stay. Two questions of one form are the same question as good as always. English and German.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 2000  # of a question that is compared by more than its own letters

_SPACE = re.compile(r"\s+")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "–": "-", "—": "-"})
# Marks that end a word, or begin one as quotes do: not those inside 1.5, a.b, 10:30, don't.
_MARKS = re.compile(r"[\"?!;¿¡…]+|[.,:]+(?=\s|$)|(?<!\w)'|'(?!\w)|(?<=\w)'(?=\w)")
# Two questions that differ in these alone may be of different meaning.
_EXACT = re.compile(r"```|`[^`]+`|\n[ \t]+\S|\n\s*[-*|#>]")

_NAMES = r"(?: there| all| everyone| zusammen)?"
_WHAT = r"(?= (?:what|how|why|who|when|where|which|if|was|wie|warum|wer|wann|wo|ob|welche)\b)"
_OPENING = re.compile(
    r"^(?:(?:hi|hello|hey|dear assistant|good (?:morning|day|evening)|hallo|guten (?:tag|morgen|abend)|servus|moin)"
    + _NAMES
    + r"|please|kindly|pls|plz|excuse me|sorry|bitte|entschuldigung|okay|ok"
    r"|(?:(?:can|could|would|will) you(?: please| kindly)?|(?:kannst|könntest|würdest) du(?: mir)?(?: bitte)?"
    r"|(?:können|könnten|würden) sie(?: mir)?(?: bitte)?) (?:tell me|let me know|sagen|(?:explain(?: to me)?|erklären)"
    + _WHAT
    + r")|(?:please )?tell me|i(?: woul)?d like to know|i want to know|i was wondering"
    r"|(?:sag|sagen sie|sage) mir(?: bitte)?)(?: |$)"
)
_CLOSING = re.compile(
    r"(?:^| )(?:please|pls|plz|kindly|bitte|danke(?: schön| sehr)?|vielen dank|besten dank"
    r"|thanks(?: a lot| in advance)?|many thanks|thank you(?: so much| very much| in advance)?|thx|cheers)$"
)
_INNER = re.compile(r"(?<= )(?:please|kindly|bitte) ")


def is_comparable(text: str) -> bool:
    """Whether a text may be compared by its form and its meaning: no code, no tables, and not too long."""
    return bool(text.strip()) and len(text) <= MAX_CHARS and _EXACT.search(text) is None


def normal_form(text: str) -> str:
    """The form of `text`; the text itself where that is all that may be compared."""
    if not is_comparable(text):
        return text
    form = unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold()
    form = _SPACE.sub(" ", _MARKS.sub(lambda mark: "" if mark.group() == "'" else " ", form)).strip()
    return _without_politeness(form) or form or text.strip()


def _without_politeness(form: str) -> str:
    while True:
        shorter = _CLOSING.sub("", _OPENING.sub("", form)).strip()
        if shorter == form:
            break
        form = shorter
    return _INNER.sub("", form)
