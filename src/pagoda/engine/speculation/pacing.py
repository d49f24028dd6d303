"""How many draft tokens a step checks: as many as make tokens a second more (`gain.py`).

A step of n tokens takes T(n) seconds, measured as it runs; with m sequences decoding, one without drafts yields m
tokens in T(m). The likeliest draft token of all sequences is taken first: it is kept with probability s, and costs
T(n + 1) - T(n). So drafting fades out where batches are full, or guesses are bad, and comes back when either changes.

The chance that token j of a draft is kept is q^j: q is the chance that a guess is right after right ones, counted for
each drafter and strength of match, and for each sequence apart, old counts fading.

A drafter whose guesses take time themselves, as a draft model's, is asked for the length with most tokens a second, its
own time included. Where none is better than no draft, it is not asked, and its counts fade until it is worth a try.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TypeVar

from pagoda.engine.drafters import LONGEST_PRICED, Price
from pagoda.engine.speculation.gain import Yield, best_length

K = TypeVar("K", bound=Hashable)

FIRST_RATES = (0.35, 0.6, 0.8, 0.9)  # q by strength, before anything is counted
PRIOR_WEIGHT = 6.0  # guesses that the rate above counts as much as
FADE = 0.93  # of a sequence's counts, with each draft
GLOBAL_FADE = 0.998
RECOVER = 0.99  # of a sequence's counts, with each draft that was not worth checking
GLOBAL_RECOVER = 0.995  # of a drafter's, with each step in which it was not worth asking
FIRST_SHARE = 0.2  # of a step of one token: what a further one is thought to cost before it is measured
SMOOTHING = 0.15  # weight of a new time
LARGEST = 64  # tokens of a step whose time is kept for itself
MARGIN = 1.05  # a guess must gain so much more than it costs: waiting for drafts costs too


@dataclass(slots=True)
class _Counts:
    """Guesses that were right, and that were the first wrong ones."""

    right: float = 0.0
    wrong: float = 0.0

    def rate(self, prior: float) -> float:
        return (self.right + prior * PRIOR_WEIGHT) / (self.right + self.wrong + PRIOR_WEIGHT)

    def fade(self, by: float) -> None:
        self.right *= by
        self.wrong *= by

    def add(self, num_proposed: int, num_accepted: int) -> None:
        self.right += num_accepted
        self.wrong += num_accepted < num_proposed


class StepTimes:
    """T(n): seconds of steps in which sequences decode, by their tokens. Between those measured, a straight line."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}

    def observe(self, num_tokens: int, seconds: float) -> None:
        if 0 < num_tokens <= LARGEST:
            old = self._times.get(num_tokens)
            # Whatever disturbs a step makes it longer, so a shorter time counts for more.
            weight = SMOOTHING if old is None or seconds >= old else 2 * SMOOTHING
            self._times[num_tokens] = seconds if old is None else old + weight * (seconds - old)

    def seconds(self, num_tokens: int) -> float | None:
        """None: nothing was measured yet. More tokens never take less."""
        if not self._times:
            return None
        below = [n for n in self._times if n <= num_tokens]
        above = [n for n in self._times if n > num_tokens]
        if not below:
            first = min(self._times)
            return self._times[first] / (1 + FIRST_SHARE * (first - num_tokens))
        low = max(below)
        floor = max(self._times[n] for n in below)
        if low == num_tokens:
            return floor
        if above:
            high = min(above)
            share = (num_tokens - low) / (high - low)
            return floor + share * max(0.0, self._times[high] - floor)
        return floor + (num_tokens - low) * self._slope(low)

    def _slope(self, last: int) -> float:
        """Seconds of one more token beyond the largest step that was measured."""
        first = min(self._times)
        guess = FIRST_SHARE * self._times[first] / (1 + FIRST_SHARE * (first - 1))
        if first == last:
            return guess
        return max(0.25 * guess, (self._times[last] - self._times[first]) / (last - first))


@dataclass(slots=True)
class Pacer:
    """Chooses the lengths of drafts. One for an engine."""

    times: StepTimes = field(default_factory=StepTimes)
    _global: dict[tuple[str, int], _Counts] = field(default_factory=dict)
    _own: dict[Hashable, _Counts] = field(default_factory=dict)

    def may_pay(self, num_decoding: int, num_tokens: int) -> bool:
        """Whether any draft could be worth checking in such a step."""
        return self._plain(num_decoding).gains(1.0, self._more(num_tokens, 1), MARGIN)

    def _plain(self, num_decoding: int) -> Yield:
        return Yield(num_decoding, self._seconds(num_decoding))

    def _more(self, num_tokens: int, count: int) -> float:
        """Seconds that `count` tokens more take."""
        return self._seconds(num_tokens + count) - self._seconds(num_tokens)

    def _seconds(self, num_tokens: int) -> float:
        """In steps of one token, before any is measured."""
        seconds = self.times.seconds(num_tokens)
        return 1 + FIRST_SHARE * (num_tokens - 1) if seconds is None else seconds

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step in which sequences decode took so long."""
        self.times.observe(num_tokens, seconds)

    def afford(self, name: str, price: Price, keys: Seq[Hashable], num_decoding: int, num_tokens: int) -> int:
        """The length of drafts, for all of these sequences, with most tokens a second; 0: none is worth its time."""
        if self.times.seconds(num_decoding) is None:  # what the drafter takes cannot be compared yet
            return LONGEST_PRICED // 4
        length = best_length(
            self._plain(num_decoding), self._drafted(name, price, keys, num_decoding, num_tokens), MARGIN
        )
        if not length:
            self._recover(name, price.strength, keys)
        return length

    def _drafted(
        self, name: str, price: Price, keys: Seq[Hashable], num_decoding: int, num_tokens: int
    ) -> Iterator[Yield]:
        """What steps with drafts of 1, 2, … tokens for each of these sequences yield."""
        rates = [self.rate(name, price.strength, key) for key in keys]
        chances = list(rates)
        now, price_now = self._plain(num_decoding), price.first
        for j in range(LONGEST_PRICED):
            now = now.plus(sum(chances), self._more(num_tokens + j * len(keys), len(keys)) + price_now)
            yield now
            chances = [chance * rate for chance, rate in zip(chances, rates, strict=True)]
            price_now = price.further

    def _recover(self, name: str, strength: int, keys: Seq[Hashable]) -> None:
        for counts, by in [(self._own.get(key), RECOVER) for key in keys] + [
            (self._global.get((name, strength)), GLOBAL_RECOVER)
        ]:
            if counts is not None:
                counts.fade(by)

    def choose(self, drafts: Mapping[K, tuple[str, int, int]], num_decoding: int, num_tokens: int) -> dict[K, int]:
        """How many tokens of each draft (drafter, strength, length) to check, in a step that has num_tokens already.

        The likeliest token of all is taken first, then the next, until one is not worth its time.
        """
        rates = {key: self.rate(name, strength, key) for key, (name, strength, _) in drafts.items()}
        chances = dict(rates)
        lengths = dict.fromkeys(drafts, 0)
        now = self._plain(num_decoding)
        while chances:
            key = max(chances, key=chances.__getitem__)
            seconds = self._more(num_tokens, 1)
            if not now.gains(chances[key], seconds, MARGIN):
                break
            now = now.plus(chances[key], seconds)
            lengths[key] += 1
            num_tokens += 1
            chances[key] *= rates[key]
            if lengths[key] == drafts[key][2]:
                del chances[key]
        for key, length in lengths.items():
            if not length and key in self._own:
                self._own[key].fade(RECOVER)
        return lengths

    def rate(self, name: str, strength: int, key: Hashable) -> float:
        """The chance that a guess of this drafter for this sequence is right."""
        known = self._global.get((name, strength))
        usual = FIRST_RATES[strength] if known is None else known.rate(FIRST_RATES[strength])
        own = self._own.get(key)
        return usual if own is None else own.rate(usual)

    def verified(self, key: Hashable, name: str, strength: int, num_proposed: int, num_accepted: int) -> None:
        """What came of a draft."""
        for counts, fade in (
            (self._own.setdefault(key, _Counts()), FADE),
            (self._global.setdefault((name, strength), _Counts()), GLOBAL_FADE),
        ):
            counts.fade(fade)
            counts.add(num_proposed, num_accepted)

    def forget(self, key: Hashable) -> None:
        self._own.pop(key, None)
