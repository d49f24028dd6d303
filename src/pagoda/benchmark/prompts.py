"""Random prompts from a seed: the same seed gives the same prompts to every server and engine."""

from __future__ import annotations

import random

FIRST_ID = 1000  # below lie special tokens and single bytes in most vocabularies
LAST_ID = 30_000  # special tokens stand at the end of large vocabularies

COMMON = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city name president team minute idea body "
    "information back parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education"
)
WORDS = COMMON.split()


def random_ids(seed: int, index: int, length: int, vocab_size: int) -> list[int]:
    """`length` token ids of prompt `index`, none of them special in the usual vocabularies."""
    source = random.Random(seed * 1_000_003 + index)
    first = FIRST_ID if vocab_size > 2 * FIRST_ID else min(256, vocab_size // 2)
    return [source.randrange(first, min(vocab_size, LAST_ID)) for _ in range(length)]


def random_text(seed: int, index: int, length: int) -> str:
    """About `length` tokens of text: common words, which are a token each in most vocabularies."""
    source = random.Random(seed * 1_000_003 + index)
    return " ".join(source.choice(WORDS) for _ in range(length))
