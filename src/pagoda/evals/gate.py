"""The gate: may a change go on, by its evaluation beside the baseline's? The verdict is a sentence with statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pagoda.evals.results import Results, differences, lower_is_better
from pagoda.evals.statistics import CONFIDENCE, Change, compare_pairs, holm

FailOn = Literal["worse", "significant", "threshold"]
Outcome = Literal["pass", "fail", "unjudged"]


@dataclass(frozen=True, slots=True)
class Rule:
    """When a metric's fall stops a change. Scores run from 0 to 1.

    significant: it is larger than noise explains, all metrics considered, and at least `threshold`; threshold: it is
    more than that, noise or not; worse: there is any.
    """

    fail_on: FailOn = "significant"
    threshold: float = 0.05
    max_unjudged: float = 0.05  # share of cases without a score in one run that have or should have one


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """One metric before and now. `change` is counted so that a fall is negative, also where lower is better."""

    metric: str
    outcome: Outcome
    before: float | None
    now: float | None
    change: Change | None
    p_corrected: float
    sentence: str


@dataclass(frozen=True, slots=True)
class GateReport:
    """The whole verdict. `incomparable` says why nothing could be compared."""

    verdicts: tuple[MetricVerdict, ...]
    incomparable: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """A failure counts first: what could not be judged beside it does not excuse it."""
        outcomes = {verdict.outcome for verdict in self.verdicts}
        if "fail" in outcomes:
            return "fail"
        return "unjudged" if self.incomparable or "unjudged" in outcomes or not outcomes else "pass"

    @property
    def exit_code(self) -> int:
        return {"pass": 0, "fail": 1, "unjudged": 2}[self.outcome]


def judge_change(baseline: Results, current: Results, rule: Rule) -> GateReport:
    """Compare two runs, metric by metric, over the cases that both judged."""
    unlike = differences(baseline, current)
    if unlike:
        return GateReport((), tuple(unlike))
    changes = {metric: _change(baseline, current, metric) for metric in baseline.setup.metrics}
    compared = [metric for metric, change in changes.items() if change is not None]
    corrected = dict(zip(compared, holm([_p(changes[metric]) for metric in compared]), strict=True))
    return GateReport(
        tuple(
            _verdict(metric, change, corrected.get(metric, 1.0), baseline, current, rule)
            for metric, change in changes.items()
        )
    )


def _p(change: Change | None) -> float:
    return 1.0 if change is None else change.p_worse


def _change(baseline: Results, current: Results, metric: str) -> Change | None:
    before, now = baseline.scores(metric), current.scores(metric)
    ids = [case_id for case_id in before if case_id in now]
    if not ids:
        return None
    sign = -1.0 if lower_is_better(metric) else 1.0
    noise = max(baseline.noise.get(metric, 0.0), current.noise.get(metric, 0.0))
    change = compare_pairs([sign * before[i] for i in ids], [sign * now[i] for i in ids], noise=noise)
    return replace(change, low=max(-1.0, change.low), high=min(1.0, change.high))  # no mean can change by more


def _verdict(
    metric: str, change: Change | None, p: float, baseline: Results, current: Results, rule: Rule
) -> MetricVerdict:
    before, now = _mean(baseline, metric), _mean(current, metric)
    num_cases = len(current.cases)
    missing = len(current.unjudged(metric))
    if change is None or missing > rule.max_unjudged * num_cases:
        why = next(iter(current.unjudged(metric).values()), "the baseline has no score of these cases")
        said = f"{metric}: {missing} of {num_cases} cases could not be judged ({why}): no verdict"
        return MetricVerdict(metric, "unjudged", before, now, change, p, said)
    outcome = _outcome(change, p, rule)
    return MetricVerdict(metric, outcome, before, now, change, p, _sentence(metric, change, p, outcome, rule))


def _mean(results: Results, metric: str) -> float | None:
    scores = list(results.scores(metric).values())
    return sum(scores) / len(scores) if scores else None


def _outcome(change: Change, p: float, rule: Rule) -> Outcome:
    fall = -change.mean
    if rule.fail_on == "worse":
        return "fail" if fall > 0 else "pass"
    if rule.fail_on == "threshold":
        return "fail" if fall >= rule.threshold else "pass"
    return "fail" if p < 1 - CONFIDENCE and fall >= rule.threshold else "pass"


def _sentence(metric: str, change: Change, p: float, outcome: Outcome, rule: Rule) -> str:
    points = abs(change.mean) * 100
    lower = lower_is_better(metric)
    worse = change.mean < 0
    if not points:
        return f"{metric} is the same on {change.num_cases} cases: passes"
    moved = "rose" if worse == lower else "fell"
    said = f"{metric} {moved} by {points:.1f} points"
    low, high = sorted((abs(change.low * 100), abs(change.high * 100)))
    if change.low * change.high > 0:
        said += f" ({CONFIDENCE:.0%} interval {low:.1f} to {high:.1f}) on {change.num_cases} cases"
    else:
        said += f", which {change.num_cases} cases cannot tell from noise; {change.cases_needed} would"
    if not worse:
        return f"{said}: for the better"
    if outcome == "fail":
        return f"{said}: fails"
    if points / 100 < rule.threshold:
        return f"{said}: passes, below the threshold of {rule.threshold * 100:g} points"
    return f"{said}: passes, p = {p:.2g} corrected for several metrics"
