"""The judge over a fake server: log odds, priors, retries, the cache, claims."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pagoda.client import HttpError
from pagoda.evals.calibration import Calibration
from pagoda.evals.evaluators import Unjudged
from pagoda.evals.judge import Judge, ResponseCache, read_log_odds
from pagoda.evals.prompts import NOTHING

Reply = Callable[[dict[str, Any]], dict[str, Any]]


class FakeEndpoint:
    """Answers from a function; `failures` are raised first."""

    def __init__(self, reply: Reply, failures: list[Exception] | None = None) -> None:
        self.reply, self.failures = reply, failures or []
        self.bodies: list[dict[str, Any]] = []

    async def post(self, path: str, body: bytes) -> bytes:
        self.bodies.append(json.loads(body))
        if self.failures:
            raise self.failures.pop(0)
        return json.dumps(self.reply(self.bodies[-1])).encode()

    def events(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        raise NotImplementedError

    def close(self) -> None: ...


def verdict(**words: float) -> dict[str, Any]:
    top = [{"token": word, "logprob": math.log(p)} for word, p in words.items()]
    return {
        "choices": [{"message": {"content": "no"}, "logprobs": {"content": [{"top_logprobs": top}]}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1},
    }


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}], "usage": {}}


def judge(endpoint: FakeEndpoint, **options: Any) -> Judge:
    return Judge(lambda: endpoint, "m", **{"words": False} | options)


def test_all_spellings_of_a_word_count_together() -> None:
    candidates = [("Yes", 0.3), (" yes", 0.1), ("No", 0.2), ("▁no.", 0.2), ("Maybe", 0.05)]
    found = read_log_odds([(token, math.log(p)) for token, p in candidates], ("yes", "no"))
    assert found == pytest.approx(math.log(0.4 / 0.4))


def test_a_word_that_is_not_among_the_candidates_is_at_most_as_likely_as_the_last() -> None:
    assert read_log_odds([("Yes", math.log(0.9)), ("The", math.log(0.02))], ("yes", "no")) == pytest.approx(
        math.log(0.9 / 0.02)
    )


def test_neither_word_is_no_verdict() -> None:
    with pytest.raises(Unjudged, match="neither yes nor no"):
        read_log_odds([("The", -0.1)], ("yes", "no"))


def test_the_judges_prior_is_subtracted() -> None:
    """With passages 0.3 : 0.6, without 0.1 : 0.8: they made yes four times as likely against no."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        return verdict(yes=0.1, no=0.8) if NOTHING in body["messages"][0]["content"] else verdict(yes=0.3, no=0.6)

    endpoint = FakeEndpoint(reply)
    assert asyncio.run(judge(endpoint).supports(("P",), "Q", "A")) == pytest.approx(0.8)  # odds of 4
    assert asyncio.run(judge(endpoint, prior=False).supports(("P",), "Q", "A")) == pytest.approx(1 / 3)
    assert asyncio.run(judge(endpoint, sampled=True).supports(("P",), "Q", "A")) == 0
    calibrated = judge(endpoint, prior=False, calibration=Calibration(1, math.log(2)))
    assert asyncio.run(calibrated.supports(("P",), "Q", "A")) == pytest.approx(0.5)


def test_words_that_stand_together_count_beside_the_judge() -> None:
    """A judge that cannot tell says 1 : 1; words add up to two to the log odds, or take as much."""
    unsure = judge(FakeEndpoint(lambda body: verdict(yes=0.4, no=0.4)), prior=False, words=True)
    found = [
        asyncio.run(unsure.support_logit(passages, "Q", "It costs 85 euros."))
        for passages in (("A service costs 85 euros; it takes a day.", "No."), ("It takes 3 days.",), ("No.",), ())
    ]
    assert found == pytest.approx([2, -1, -2, -2])


def test_preference_does_not_depend_on_the_place() -> None:
    endpoint = FakeEndpoint(lambda body: verdict(A=0.8, B=0.1))  # whatever stands first
    assert asyncio.run(judge(endpoint).prefers("Q", "one", "two")) == pytest.approx(0.5)


def test_agreement_is_asked_in_both_orders() -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        one_is_first = "First answer: one" in body["messages"][0]["content"]
        return verdict(yes=0.8, no=0.2) if one_is_first else verdict(yes=0.5, no=0.5)

    endpoint = FakeEndpoint(reply)
    assert asyncio.run(judge(endpoint).agree("Q", "one", "two")) == pytest.approx(math.log(4) / 2)
    assert len(endpoint.bodies) == 2


def test_a_full_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("pagoda.evals.judge.asyncio.sleep", sleep)
    busy = HttpError("429", 429, retry_after=3)
    endpoint = FakeEndpoint(lambda body: verdict(yes=0.5, no=0.5), [busy, HttpError("500", 500)])
    assert asyncio.run(judge(endpoint, prior=False).supports(("P",), "Q", "A")) == 0.5
    assert waits == [3, 6]


def test_a_refusal_is_no_verdict() -> None:
    endpoint = FakeEndpoint(said, [HttpError("400: too long", 400)])  # type: ignore[arg-type]
    with pytest.raises(Unjudged, match="refuses: 400: too long"):
        asyncio.run(judge(endpoint).answers("Q", "A"))


def test_a_server_without_log_probabilities_is_named() -> None:
    with pytest.raises(Unjudged, match="no log-probabilities"):
        asyncio.run(judge(FakeEndpoint(lambda body: said("yes"))).answers("Q", "A"))


def test_asking_twice_asks_once(tmp_path: Path) -> None:
    endpoint = FakeEndpoint(lambda body: verdict(yes=0.7, no=0.3))
    for name, asked in (("one", 1), ("one", 1), ("two", 2)):
        cache = ResponseCache(tmp_path / "judge.sqlite", name)
        found = judge(endpoint, cache=cache)
        assert asyncio.run(found.answers("Q", "A")) == pytest.approx(0.7)
        assert len(endpoint.bodies) == asked
        cache.close()
    assert found.spent.prompt_tokens == 10


@pytest.mark.parametrize(
    ("reply", "claims"),
    [
        ('["Paris is a city.", "Paris is in France."]', ["Paris is a city.", "Paris is in France."]),
        ('```json\n["Paris is a city."]\n```', ["Paris is a city."]),
        ("I cannot do that", ["Paris is a city.", "It is in France."]),  # off format: sentences
        ('["Mount Everest towers above everything"]', ["Paris is a city.", "It is in France."]),  # made up
    ],
)
def test_claims_are_the_judges_where_they_are_of_the_answer(reply: str, claims: list[str]) -> None:
    endpoint = FakeEndpoint(lambda body: said(reply))
    assert asyncio.run(judge(endpoint).claims("Q", "Paris is a city. It is in France.")) == claims


def test_one_sentence_is_one_claim_and_a_refusal_none() -> None:
    endpoint = FakeEndpoint(said)  # type: ignore[arg-type]
    assert asyncio.run(judge(endpoint).claims("Q", "November 12, 2020")) == ["November 12, 2020"]
    assert asyncio.run(judge(endpoint).claims("Q", "I don't know.")) == []
    assert not endpoint.bodies
