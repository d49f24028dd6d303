"""Which upstream gets a request: one that has read how it begins, unless it has more to do than others.

    1. those that have the model and answer; fallbacks only where no other does
    2. the one where the request's session went, or where most of its beginning was read, if it is not overloaded
    3. otherwise the lesser loaded of two that are drawn at random

Overloaded is who has more than 1.5 times as much to do as the least loaded one: now, and for who is chosen by prefix
over the last minute, too. So a prompt that all requests begin with comes to live on all upstreams that share the work.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pagoda.errors import ModelNotFoundError
from pagoda.gateway.settings import Routing
from pagoda.gateway.upstream import Upstream

OVERLOAD = 1.5  # times the least load
SLACK = 2.0  # requests that make no overload
WORTH = 0.25  # of a request's pieces that must have been read, that the place where they were matters
MAX_SESSIONS = 65_536


@dataclass(frozen=True, slots=True)
class Journey:
    """What routing looks at of a request."""

    model: str | None = None
    prefix: tuple[int, ...] = ()  # hashes of the pieces of its text
    session: str | None = None  # those of the same go to the same upstream


@dataclass(frozen=True, slots=True)
class Choice:
    """An upstream, and why it was chosen."""

    upstream: Upstream
    why: str  # session, prefix, load, random, only
    matched: int = 0  # pieces of the request that it has read


class Router:
    """Chooses among `upstreams`."""

    def __init__(self, upstreams: Sequence[Upstream], routing: Routing = "affinity", seed: int | None = None) -> None:
        self.upstreams = tuple(upstreams)
        self._routing = routing
        self._random = random.Random(seed)
        self._sessions: OrderedDict[str, str] = OrderedDict()

    def choose(self, journey: Journey, without: Collection[Upstream] = ()) -> Choice | None:
        """None: nobody but those of `without` has the model."""
        having = [u for u in self.upstreams if u not in without and u.name_of(journey.model) is not None]
        able = _best_there_are(having)
        if not able:
            return None
        choice = self._among(able, journey)
        if journey.session is not None:
            self._sessions[journey.session] = choice.upstream.name
            self._sessions.move_to_end(journey.session)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return choice

    def unknown(self, model: str | None) -> ModelNotFoundError:
        """Nobody has the model."""
        return ModelNotFoundError(f"The model `{model}` does not exist. The upstreams have {names(self.models())}.")

    def models(self) -> list[str]:
        """Names that clients can ask for, as far as they are known."""
        return sorted({name for one in self.upstreams for name in one.settings.models or one.listed or ()})

    def _among(self, able: Sequence[Upstream], journey: Journey) -> Choice:
        if len(able) == 1:
            return Choice(able[0], "only", able[0].prefixes.matched(journey.prefix))
        if self._routing == "random":
            weights = [one.settings.weight for one in able]
            return Choice(self._random.choices(able, weights)[0], "random")
        if self._routing == "affinity" and (choice := self._affine(able, journey)) is not None:
            return choice
        chosen = least_loaded(self._random.sample(able, 2) if len(able) > 2 else able)
        return Choice(chosen, "load", chosen.prefixes.matched(journey.prefix))

    def _affine(self, able: Sequence[Upstream], journey: Journey) -> Choice | None:
        """Where the session or the prefix lives; None: nowhere, or there is too much to do."""
        matches = {one: one.prefixes.matched(journey.prefix) for one in able}
        lightest, calmest = min(one.load for one in able), min(one.recent for one in able)
        home = self._sessions.get(journey.session or "")
        for one in able:
            if one.name == home and one.load <= bound(lightest, one):
                return Choice(one, "session", matches[one])
        most = max(matches.values())
        if not most or most < WORTH * len(journey.prefix):
            return None
        nearest = least_loaded([one for one in able if matches[one] >= 0.9 * most])
        if nearest.load > bound(lightest, nearest) or nearest.recent > bound(calmest, nearest):
            return None
        return Choice(nearest, "prefix", matches[nearest])


def bound(least: float, upstream: Upstream) -> float:
    """What the upstream may have to do, where another has `least`, without being overloaded."""
    return OVERLOAD * least + SLACK / upstream.settings.weight


def least_loaded(upstreams: Sequence[Upstream]) -> Upstream:
    """By requests under way, and where they are equal by those of the last minute."""
    return min(upstreams, key=lambda one: (one.load, one.recent))


def names(values: Sequence[str]) -> str:
    """For messages: the first few."""
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    return ", ".join(values[:8]) + more if values else "none that is known yet"


def _best_there_are(having: Sequence[Upstream]) -> list[Upstream]:
    """Those that answer, before fallbacks, before those that rest; where none is left, those that did not answer."""
    healthy = [one for one in having if one.healthy]
    awake = [one for one in healthy if not one.rests]
    for group in (awake, healthy, list(having)):
        if first := [one for one in group if not one.settings.fallback] or group:
            return first
    return []
