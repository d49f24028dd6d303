"""Settings of the semantic cache: `ServerSettings` holds them, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class CacheSettings(Settings):
    """What is kept where, and how many hits may be wrong."""

    cache_store: Annotated[
        str | None,
        Setting(
            "Answer repeated questions from a cache: memory, sqlite, sqlite:FILE, redis://HOST or postgresql://HOST/DB.",
            also=("cache",),
        ),
    ] = None
    cache_embedder: Annotated[
        str, Setting("Model that says how alike questions are; none: repeats of the same words alone are hits.")
    ] = "all-minilm-l6-v2"
    cache_verifier: Annotated[
        Path | None, Setting("What `pagoda cache train` has made, for another embedder or of your own pairs.")
    ] = None
    cache_max_wrong: Annotated[
        float, Setting("Share of hits that may be wrong; evidence decides what it allows.", minimum=0, maximum=0.5)
    ] = 0.02
    cache_shadow: Annotated[
        float, Setting("Share of hits by meaning that are answered afresh, to be compared.", minimum=0, maximum=1)
    ] = 0.05
    cache_judge: Annotated[
        str | None, Setting("URL of an OpenAI-compatible server whose model compares the answers of such checks, too.")
    ] = None
    cache_judge_model: Annotated[str | None, Setting("The judge's name at its server. [default: its first]")] = None
    cache_judge_key: Annotated[str | None, Setting("API key of the judge's server.", secret=True)] = None
    cache_log: Annotated[
        Path | None,
        Setting("Append questions and answers, texts of users, to this file, for `pagoda cache evaluate`."),
    ] = None
    cache_ttl: Annotated[float, Setting("Seconds that an answer is kept; some rules say less.", minimum=1)] = 86400.0
    cache_sliding: Annotated[bool, Setting("Count that from an answer's last hit, instead of from its making.")] = False
    cache_tags: Annotated[
        tuple[str, ...], Setting("TAG=SECONDS: answers to requests with this tag are kept at most so long.")
    ] = ()
    cache_never: Annotated[
        tuple[str, ...], Setting("NAME=PATTERN: questions of this pattern are never kept.", verbatim=True)
    ] = ()
    cache_shorter: Annotated[
        tuple[str, ...], Setting("NAME=SECONDS=PATTERN: answers to such questions are kept so long.", verbatim=True)
    ] = ()
    cache_max_temperature: Annotated[
        float, Setting("Requests of a higher temperature want another answer each time.", minimum=0)
    ] = 1.0
    cache_max_entries: Annotated[int, Setting("Answers kept at most; the oldest go first.", minimum=1)] = 100_000
    cache_budget: Annotated[
        float, Setting("Seconds that the store may take for a lookup; longer is a miss.", minimum=0.001, maximum=10)
    ] = 0.02
    cache_key: Annotated[
        str | None, Setting("Key with which questions and answers are encrypted in the store.", secret=True)
    ] = None
