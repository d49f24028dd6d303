"""Which questions may share an answer, and for how long it is kept.

What must be equal is the partition: a hash of everything of a request but the question itself. Meaning is compared
inside one partition alone, so no answer crosses tenants, models, system prompts, tools, formats or conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pagoda.cache.entry import digest
from pagoda.cache.normalize import is_comparable, normal_form
from pagoda.cache.rules import DAY, Rules
from pagoda.errors import RequestError

MIN_TTL, MAX_TTL = 1.0, 365 * DAY
MAX_TAGS, MAX_TAG_CHARS = 16, 128

Mode = Literal["on", "off", "read", "write", "refresh"]
MODES: tuple[Mode, ...] = ("on", "off", "read", "write", "refresh")


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What a request asks of the cache.

    on: take an answer from it, and put new ones in; off: neither; read, write: the one alone; refresh: answer afresh,
    in place of what is kept.
    """

    mode: Mode = "on"
    ttl: float | None = None  # seconds; at most what the rules allow
    tags: tuple[str, ...] = ()

    @property
    def reads(self) -> bool:
        return self.mode in ("on", "read")

    @property
    def writes(self) -> bool:
        return self.mode in ("on", "write", "refresh")


DEFAULT_OPTIONS = CacheOptions()


def options_of(text: str) -> CacheOptions:
    """A header's value, as `read` or `refresh, ttl=3600, tag=docs`. Raises RequestError."""
    mode: Mode = "on"
    ttl, tags = None, []
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        if name in ("ttl", "max-age"):
            ttl = _seconds(value)
        elif name == "tag":
            tags.append(value)
        elif word in MODES:
            mode = word
        else:
            raise RequestError(f"{word!r} is none of {', '.join(MODES)}, ttl=SECONDS, tag=NAME", param="X-Pagoda-Cache")
    return CacheOptions(mode, ttl, _checked_tags(tags))


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdigit() or not MIN_TTL <= int(text[:12]) <= MAX_TTL:
        raise RequestError(f"ttl={text!r} is not a number of seconds from 1 to {MAX_TTL:.0f}", param="X-Pagoda-Cache")
    return float(text)


def _checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    if len(tags) > MAX_TAGS or any(not 0 < len(tag) <= MAX_TAG_CHARS for tag in tags):
        raise RequestError(f"at most {MAX_TAGS} tags of 1 to {MAX_TAG_CHARS} characters each", param="X-Pagoda-Cache")
    return tuple(dict.fromkeys(tags))


@dataclass(frozen=True, slots=True)
class Question:
    """One request as the cache sees it."""

    text: str  # the last thing that the user said
    partition: str
    tenant: str
    model: str
    max_tokens: int | None  # None: no limit
    ttl: float  # seconds to keep its answer
    rule: str = ""  # which shortened that
    tags: tuple[str, ...] = ()
    exact: bool = False  # answered by what the same text got, and by nothing else

    @property
    def key(self) -> str:
        """Equal for repeats that differ in case, punctuation, spacing or politeness alone."""
        return digest([self.partition, self.text if self.exact else normal_form(self.text)])

    @property
    def is_comparable(self) -> bool:
        """Whether it may be answered by what another question of its meaning got."""
        return not self.exact and is_comparable(self.text)


def partition_of(parts: Mapping[str, str]) -> str:
    """The hash of named parts: tenant, model, adapter, what stands around the question, format, sampling class…"""
    return digest([piece for name in sorted(parts) for piece in (name, parts[name])])


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's limits, and the rules."""

    rules: Rules
    ttl: float = DAY
    tag_ttls: Mapping[str, float] | None = None  # seconds that answers with a tag are kept at most
    sliding: bool = False
    max_temperature: float = 1.0

    def lifetime(self, texts: Sequence[str], options: CacheOptions) -> tuple[float, str]:
        """Seconds that an answer may be kept, and the name of the rule that says so; 0: not at all.

        `texts`: all that the user said in this conversation. A request's own ttl only shortens what a rule allows.
        """
        ruling = self.rules.ruling(texts, self.ttl)
        ttl, why = ruling.ttl, ruling.rule.name if ruling.rule is not None else ""
        for tag in options.tags:
            if tag in (self.tag_ttls or {}) and (limit := (self.tag_ttls or {})[tag]) < ttl:
                ttl, why = limit, f"tag {tag}"
        if options.ttl is not None and ttl and (options.ttl < ttl or not why):
            ttl = options.ttl
        return ttl, why


def sampling_class(temperature: float) -> str:
    """Answers are shared within a class: of greedy requests, and of those that want as much variety."""
    return "greedy" if temperature == 0 else "low" if temperature <= 0.5 else "high"
