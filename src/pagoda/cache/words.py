"""A question → its words, and what of them decides the answer: numbers, names, negation, the word it asks with.

English and German. Words are compared by a stem, which takes off the endings that seldom change what is asked.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache


def _words(text: str) -> list[str]:
    return text.split()


WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?|[+#]+", re.UNICODE)
NUMBER_WORDS = {
    word: str(number)
    for words in (
        _words("zero one two three four five six seven eight nine ten eleven twelve"),
        _words("null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf"),
    )
    for number, word in enumerate(words)
}
ASKING = {
    "how": "how", "why": "why", "what": "what", "who": "who", "whom": "who", "whose": "who", "when": "when",
    "where": "where", "which": "what", "is": "whether", "are": "whether", "were": "whether",
    "do": "whether", "does": "whether", "did": "whether", "can": "whether", "could": "whether", "will": "whether",
    "would": "whether", "should": "whether", "has": "whether", "have": "whether",
    "wie": "how", "warum": "why", "weshalb": "why", "wieso": "why", "was": "what", "wer": "who", "wen": "who",
    "wem": "who", "wessen": "who", "wann": "when", "wo": "where", "wohin": "where", "woher": "where",
    "welche": "what", "welcher": "what", "welches": "what", "ist": "whether", "sind": "whether",
    "kann": "whether", "können": "whether", "soll": "whether", "darf": "whether", "hat": "whether",
}  # fmt: skip
NEGATIONS = frozenset(
    _words(
        "no not never none nobody nothing neither nor cannot without cant wont dont doesnt didnt isnt arent wasnt "
        "werent shouldnt wouldnt couldnt hasnt havent nicht kein keine keinen keiner keinem keines nie niemals nichts "
        "niemand ohne weder"
    )
)
# Words that seldom decide what is asked.
STOP = frozenset(
    _words(
        "a an the of to in on at for from by with about into over and or as is are was were be been being am do does "
        "did done has have had can could will would should shall may might must it its this that these those there "
        "here i me my we our us you your he him his she her they them their one ones some any what which who whom "
        "whose when where why how if then than so just also very really please get got way ways thing things someone "
        "anyone people person s t re ve ll m d der die das den dem des ein eine einen einem einer eines und oder von "
        "zu zum zur im in am an auf für mit bei aus ist sind war waren sein bin hat haben hatte kann können könnte "
        "wird werden würde soll sollte muss es ich mir mich wir uns du dir dich man sie er ihm ihr ihnen wie was wer "
        "wo wann warum welche welcher welches so auch dann wenn als bitte sich"
    )
)
OPPOSITES = {
    left: right
    for pair in _words(
        "enable/disable increase/decrease buy/sell open/close start/stop install/uninstall best/worst good/bad "
        "gain/lose add/remove up/down in/out on/off before/after hot/cold male/female men/women man/woman boy/girl "
        "boys/girls girlfriend/boyfriend husband/wife advantage/disadvantage pro/con love/hate first/last "
        "always/never more/less most/least high/low fast/slow big/small import/export lock/unlock block/unblock "
        "delete/recover accept/reject send/receive old/new legal/illegal possible/impossible maximum/minimum max/min "
        "win/lose left/right upload/download input/output push/pull import/export public/private safe/dangerous "
        "rich/poor north/south east/west cheap/expensive short/long light/dark light/heavy true/false question/answer "
        "aktivieren/deaktivieren erhöhen/senken kaufen/verkaufen öffnen/schließen gut/schlecht vor/nach mehr/weniger "
        "hinzufügen/entfernen ein/aus installieren/deinstallieren sperren/entsperren alt/neu"
    )
    for left, right in (pair.split("/"), reversed(pair.split("/")))
}
ENDINGS = ("ingly", "edly", "ings", "ing", "ies", "ied", "est", "ers", "ed", "es", "er", "ly", "en", "s", "e", "y")


@dataclass(frozen=True, slots=True)
class Words:
    """What is compared of one question."""

    all: tuple[str, ...]  # lower case, in order
    stems: tuple[str, ...]  # of the words that carry meaning, in order
    numbers: frozenset[str]
    names: frozenset[str]  # stems of words written with capitals inside the sentence
    negations: int
    asking: str  # what it asks with, "" where that is not said
    trigrams: frozenset[str]
    num_sentences: int


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The word without one common ending; short words stay."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)] + ("i" if ending in ("ies", "ied") else "")
    return word


@lru_cache(maxsize=16384)
def words_of(text: str) -> Words:
    """The words of a question."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    raw = WORD.findall(text)
    lower = [NUMBER_WORDS.get(word.lower(), word.lower().replace("'", "")) for word in raw]
    content = tuple(stem(word) for word in lower if word not in STOP and word not in NEGATIONS)
    starts = _sentence_starts(text)
    names = frozenset(
        stem(match.group().lower().replace("'", ""))
        for match in WORD.finditer(text)
        if match.start() not in starts and match.group()[0].isupper() and match.group().lower() not in STOP
    )
    joined = " ".join(lower)
    return Words(
        tuple(lower),
        content,
        frozenset(word for word in lower if word[0].isdigit()),
        names,
        sum(word in NEGATIONS for word in lower),
        next((ASKING[word] for word in lower if word in ASKING), ""),
        frozenset(joined[i : i + 3] for i in range(len(joined) - 2)),
        len(starts),
    )


def _sentence_starts(text: str) -> set[int]:
    """Where the first word of each sentence begins."""
    found = re.finditer(r"(?:^|[.!?]\s+|\n)\W*(?=\w)", text)
    return {match.end() for match in found}
