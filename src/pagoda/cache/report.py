"""What `pagoda cache evaluate` says of labelled pairs, or of a log of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pagoda.cache.embedder import Embedder
from pagoda.cache.evaluation import LEVELS, Curve, curve
from pagoda.cache.pairs import Pair
from pagoda.cache.policy import Policy
from pagoda.cache.question_log import Logged
from pagoda.cache.replay import Outcome, candidates, replay_at, stream_of, truth_of
from pagoda.cache.rules import Rules
from pagoda.cache.training import vectors_of
from pagoda.cache.verifier import Verifier
from pagoda.errors import ConfigError

LIMITS = (0.01, 0.02, 0.05, 0.1)  # of --cache-max-wrong
SHADOW = 0.05  # as the server's default


@dataclass(frozen=True)
class Report:
    """Curves, and figures beside them."""

    about: str  # how many of what
    curves: Sequence[Curve]
    facts: dict[str, Any]
    outcomes: dict[float, Outcome] = field(default_factory=dict)  # by --cache-max-wrong

    @property
    def shape(self) -> dict[str, Any]:
        """As JSON has it."""
        found = {one.name: {f"{level:g}": round(one.found_at(level), 4) for level in LEVELS} for one in self.curves}
        scores = {one.name: {f"{level:g}": one.score_at(level) for level in LEVELS} for one in self.curves}
        shape = self.facts | {"found": found, "from_score": scores}
        if self.outcomes:
            shape["max_wrong"] = {f"{limit:g}": asdict(one) for limit, one in self.outcomes.items()}
        return shape

    def text(self) -> str:
        """For people."""
        lines = [f"{self.about}; true repeats found:"]
        lines.append("wrong hits   " + "".join(f"{one.name:>10}" for one in self.curves))
        for level in LEVELS:
            lines.append(f"{f'{level:.0%}':<13}" + "".join(f"{one.found_at(level):>10.1%}" for one in self.curves))
        if self.outcomes:
            lines += [
                "",
                "a cache would have:",
                "--cache-max-wrong  saved  wrong hits  hits by meaning  wrong of these",
            ]
        for limit, one in self.outcomes.items():
            saved = (one.hits - one.checks) / self.facts["questions"]
            of_meaning = one.wrong_by_meaning / max(one.by_meaning, 1)
            lines.append(
                f"{limit:<17g} {saved:>6.1%} {one.wrong / max(one.hits, 1):>11.2%} {one.by_meaning:>16} "
                f"{of_meaning:>15.1%}"
            )
        return "\n".join(lines)


def pairs_report(pairs: Sequence[Pair], verifier: Verifier, embedder: Embedder) -> Report:
    """Raises ConfigError where there is nothing to be told apart."""
    same = [pair.same for pair in pairs]
    if all(same) or not any(same):
        raise ConfigError("all pairs have the same label, so nothing can be measured")
    left, right = vectors_of(pairs, embedder)
    odds = verifier.of_pairs([(pair.a, pair.b) for pair in pairs], left, right)
    curves = [curve("cosine", np.einsum("nd,nd->n", left, right), same), curve("verifier", odds, same)]
    about = f"{len(same)} pairs, {sum(same)} of them of one meaning"
    return Report(about, curves, {"pairs": len(same), "same": sum(same)})


def log_report(lines: Sequence[Logged], verifier: Verifier, embedder: Embedder) -> Report:
    """Replay the log: each question beside the nearest before it, and the whole at each of LIMITS."""
    stream, truth, policy = stream_of(lines, embedder), truth_of(lines, embedder), Policy(Rules())
    found = candidates(stream, verifier, truth)
    outcomes = {limit: replay_at(stream, embedder, verifier, policy, truth, limit, shadow=SHADOW) for limit in LIMITS}
    facts = {
        "questions": len(lines),
        "same_words": found.num_same_words,
        "repeats": found.num_repeats,
        "known": found.num_known,
        "bypassed": outcomes[LIMITS[0]].bypassed,
    }
    about = (
        f"{len(lines)} questions, {found.num_same_words} of them repeats of the same words, {found.num_repeats} of "
        f"other words, {facts['bypassed']} never kept by the rules"
    )
    return Report(about, found.curves, facts, outcomes)
