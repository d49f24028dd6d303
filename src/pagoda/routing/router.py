"""Which replica gets a request: one that has read how it begins, unless it has more to do than others.

    1. those that have the model and answer; fallbacks only where no other does
    2. of them those that have the adapter which is asked for in memory, as far as they are not overloaded
    3. the one where the request's session went, or where most of its beginning was read, if it is not overloaded
    4. otherwise the lesser loaded of two that are drawn at random

Overloaded is who has more than 1.5 times as much to do as the least loaded one: now, and for who is chosen by prefix
over the last minute, too. So a prompt that all requests begin with comes to live on all replicas that share the work.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, Protocol, TypeVar

from pagoda.routing.prefixes import Prefixes

Routing = Literal["affinity", "load", "random"]

OVERLOAD = 1.5  # times the least load
SLACK = 2.0  # requests that make no overload
WORTH = 0.25  # of a request's pieces that must have been read, that the place where they were matters
MAX_SESSIONS = 65_536


class Replica(Protocol):
    """Something that can answer, as routing sees it."""

    name: str
    healthy: bool  # it answers

    @property
    def prefixes(self) -> Prefixes:
        """Of texts, that it holds as far as is known."""

    @property
    def weight(self) -> float:
        """Its share beside others'."""

    @property
    def fallback(self) -> bool:
        """Whether it is asked only where no other answers."""

    @property
    def load(self) -> float:
        """What it has to do now, for its weight."""

    @property
    def recent(self) -> float:
        """What it was sent lately, for its weight."""

    @property
    def rests(self) -> bool:
        """Whether it has asked to be left alone for now."""

    def name_of(self, model: str | None) -> str | None:
        """What it calls the model; None: it does not have it."""

    def holds(self, model: str | None) -> bool:
        """Whether it answers at once. Of an adapter that it has on disk alone: it would have to read it first."""


R = TypeVar("R", bound=Replica)


@dataclass(frozen=True, slots=True)
class Journey:
    """What routing looks at of a request."""

    model: str | None = None
    prefix: tuple[int, ...] = ()  # hashes of the pieces of its text
    session: str | None = None  # those of the same go to the same replica


@dataclass(frozen=True, slots=True)
class Choice(Generic[R]):
    """A replica, and why it was chosen."""

    replica: R
    why: str  # session, prefix, load, random, only, adapter
    matched: int = 0  # pieces of the request that it has read


class Router(Generic[R]):
    """Chooses among `replicas`."""

    def __init__(self, replicas: Sequence[R], routing: Routing = "affinity", seed: int | None = None) -> None:
        self.replicas = tuple(replicas)
        self._routing = routing
        self._random = random.Random(seed)
        self._sessions: OrderedDict[str, str] = OrderedDict()

    def choose(self, journey: Journey, without: Collection[R] = ()) -> Choice[R] | None:
        """None: nobody but those of `without` has the model."""
        having = [u for u in self.replicas if u not in without and u.name_of(journey.model) is not None]
        able = _best_there_are(having)
        if not able:
            return None
        near = self._at_once(able, journey)
        choice = self._among(near, journey)
        if len(near) == 1 < len(able):
            choice = replace(choice, why="adapter")
        if journey.session is not None:
            self._sessions[journey.session] = choice.replica.name
            self._sessions.move_to_end(journey.session)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return choice

    def _at_once(self, able: Sequence[R], journey: Journey) -> Sequence[R]:
        """Those that need not read the adapter first, unless all of these have too much to do; else all."""
        if self._routing == "random" or journey.model is None:
            return able
        holding = [one for one in able if one.holds(journey.model)]
        if len(holding) == len(able):
            return able
        lightest = min(one.load for one in able)
        return [one for one in holding if one.load <= bound(lightest, one)] or able

    def _among(self, able: Sequence[R], journey: Journey) -> Choice[R]:
        if len(able) == 1:
            return Choice(able[0], "only", able[0].prefixes.matched(journey.prefix))
        if self._routing == "random":
            weights = [one.weight for one in able]
            return Choice(self._random.choices(able, weights)[0], "random")
        if self._routing == "affinity" and (choice := self._affine(able, journey)) is not None:
            return choice
        chosen = least_loaded(self._random.sample(able, 2) if len(able) > 2 else able)
        return Choice(chosen, "load", chosen.prefixes.matched(journey.prefix))

    def _affine(self, able: Sequence[R], journey: Journey) -> Choice[R] | None:
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


def bound(least: float, replica: Replica) -> float:
    """What the replica may have to do, where another has `least`, without being overloaded."""
    return OVERLOAD * least + SLACK / replica.weight


def least_loaded(replicas: Sequence[R]) -> R:
    """By requests under way, and where they are equal by those of the last minute."""
    return min(replicas, key=lambda one: (one.load, one.recent))


def _best_there_are(having: Sequence[R]) -> list[R]:
    """Those that answer, before fallbacks, before those that rest; where none is left, those that did not answer."""
    healthy = [one for one in having if one.healthy]
    awake = [one for one in healthy if not one.rests]
    for group in (awake, healthy, list(having)):
        if first := [one for one in group if not one.fallback] or group:
            return first
    return []
