"""A judge: a model behind OpenAI's chat API, asked yes-or-no questions whose answer's probability is the measurement.

A sampled word throws that probability away: a small model that says 'no' to everything may still rank right above wrong
without error. So a verdict is the log odds of yes against no among the first token's likeliest candidates; calibrated
(`calibration.py`), it is a probability that can be averaged.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pagoda.client import Endpoint, HttpError
from pagoda.errors import PagodaError
from pagoda.evals import prompts
from pagoda.evals.calibration import Calibration
from pagoda.evals.evaluators import Unjudged
from pagoda.evals.sentences import is_refusal, share_together, split_sentences, words

TOP = 20  # candidates of the first token that OpenAI's API shows at most
FLOOR = 1e-6  # the probability of a word that is not among them and has no bound
WORDS_WEIGHT = 2.0  # log odds of a claim all of whose words stand together in a passage; none of them: as much less
RETRIES = 5
MAX_WAIT_S = 30.0
MAX_CLAIMS = 20
CLAIMS_SCHEMA = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_CLAIMS}


@dataclass(slots=True)
class Spent:
    """What judging took so far."""

    requests: int = 0
    cached: int = 0  # answered from the disk cache
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Judge:
    """Asks one model; an `Asking`. Safe for many tasks of one event loop.

    sampled: take the likeliest word for the verdict, as RAGAS does, for comparison. prior: subtract what the judge
    believes without the passages, which costs another question a claim. words: also count how many of a claim's words
    stand together in a passage. claims: split answers by the judge, not by sentences.
    """

    open_endpoint: Callable[[], Endpoint]
    model: str | None
    calibration: Calibration | None = None
    sampled: bool = False
    prior: bool = True
    words: bool = True
    split_by_judge: bool = True
    concurrency: int = 16
    cache: ResponseCache | None = None
    embedding_model: str | None = None
    spent: Spent = field(default_factory=Spent)
    _idle: list[Endpoint] = field(default_factory=list)
    _slots: asyncio.Semaphore | None = None

    async def supports(self, passages: Sequence[str], question: str, claim: str) -> float:
        return self._probability(await self.support_logit(passages, question, claim))

    async def support_logit(self, passages: Sequence[str], question: str, claim: str) -> float:
        """Log odds that the passages state the claim, before calibration."""
        given = await self.log_odds(prompts.supports(passages, question, claim))
        if self.sampled:
            return given
        if self.prior:
            given -= await self.log_odds(prompts.knows(question, claim))
        if self.words:
            share = max((share_together(claim, passage) for passage in passages), default=0.0)
            given += WORDS_WEIGHT * (2 * share - 1)
        return given

    async def useful(self, passage: str, question: str, reference: str) -> float:
        return await self.supports((passage,), question, reference)

    async def answers(self, question: str, answer: str) -> float:
        return self._plain(await self.log_odds(prompts.answers(question, answer)))

    async def prefers(self, question: str, first: str, second: str) -> float:
        """Asked in both orders, since judges prefer a place as much as an answer."""
        forward = await self.log_odds(prompts.prefers(question, first, second), ("a", "b"))
        backward = await self.log_odds(prompts.prefers(question, second, first), ("a", "b"))
        return self._plain((forward - backward) / 2)

    async def agree(self, question: str, first: str, second: str) -> float:
        """Log odds that both answers tell the same, the mean of both orders. Raises Unjudged."""
        forward = await self.log_odds(prompts.agree(question, first, second))
        backward = await self.log_odds(prompts.agree(question, second, first))
        return (forward + backward) / 2

    async def claims(self, question: str, answer: str) -> list[str]:
        if is_refusal(answer):
            return []
        sentences = split_sentences(answer)
        if len(sentences) < 2 or not self.split_by_judge:
            return sentences
        found = await self._split(question, answer)
        said = words(answer)
        honest = [claim for claim in found if claim.strip() and len(words(claim) & said) >= len(words(claim)) / 2]
        return honest if honest and len(honest) == len(found) else sentences

    async def similarity(self, first: str, second: str) -> float | None:
        if self.embedding_model is None:
            return None
        body = await self._ask("/v1/embeddings", {"model": self.embedding_model, "input": [first, second]})
        a, b = (row["embedding"] for row in body["data"])
        norm = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0

    async def log_odds(self, messages: prompts.Messages, answers: tuple[str, str] = ("yes", "no")) -> float:
        """Log odds of the first of two words against the second as the start of the answer. Raises Unjudged."""
        wanted = {"messages": messages, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP}
        body = await self._ask("/v1/chat/completions", wanted)
        try:
            top = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            candidates = [(str(one["token"]), float(one["logprob"])) for one in top]
        except (KeyError, IndexError, TypeError, ValueError):
            raise Unjudged("the judge's server gives no log-probabilities") from None
        return read_log_odds(candidates, answers)

    async def write_json(
        self, messages: prompts.Messages, name: str, schema: Mapping[str, Any], max_tokens: int
    ) -> str:
        """What the judge writes under a schema; where its server knows none, it may be anything."""
        form = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "response_format": form}
        found = await self._ask("/v1/chat/completions", body)
        return str(found["choices"][0]["message"].get("content") or "")

    def _probability(self, logit: float) -> float:
        if self.sampled:
            return float(logit > 0)
        return (self.calibration or Calibration()).probability(logit)

    def _plain(self, logit: float) -> float:
        return float(logit > 0) if self.sampled else Calibration().probability(logit)

    async def _split(self, question: str, answer: str) -> list[str]:
        """Statements as the judge tells them apart; none where its answer is not the JSON that was asked for."""
        limit = 64 + 2 * len(answer)  # a token is at least a byte or so
        text = await self.write_json(prompts.claims(question, answer), "claims", CLAIMS_SCHEMA, max_tokens=limit)
        match = re.search(r"\[.*\]", text, re.DOTALL)
        try:
            found = json.loads(match.group() if match else "")
        except ValueError:
            return []
        return [claim for claim in found if isinstance(claim, str)] if isinstance(found, list) else []

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request, from the cache where it was asked before. Raises Unjudged when it is refused for good."""
        if self.model is not None:
            body.setdefault("model", self.model)
        data = orjson.dumps(body)
        if self.cache is not None and (kept := self.cache.get(path, data)) is not None:
            self.spent.cached += 1
            return dict(orjson.loads(kept))
        async with self._endpoint() as endpoint:
            answer = await _patiently(endpoint, path, data)
        found: dict[str, Any] = orjson.loads(answer)
        usage = found.get("usage") or {}
        self.spent.requests += 1
        self.spent.prompt_tokens += usage.get("prompt_tokens", 0)
        self.spent.completion_tokens += usage.get("completion_tokens", 0)
        if self.cache is not None:
            self.cache.put(path, data, answer)
        return found

    @asynccontextmanager
    async def _endpoint(self) -> AsyncIterator[Endpoint]:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.concurrency)
        async with self._slots:
            endpoint = self._idle.pop() if self._idle else self.open_endpoint()
            try:
                yield endpoint
            finally:
                self._idle.append(endpoint)

    def close(self) -> None:
        """Close all connections."""
        for endpoint in self._idle:
            endpoint.close()
        self._idle.clear()


def read_log_odds(candidates: list[tuple[str, float]], answers: tuple[str, str]) -> float:
    """Log odds from (token, log-probability) of the likeliest first tokens.

    A word that is not among them is at most as likely as the last of them. Raises Unjudged where neither is.
    """
    mass = [0.0, 0.0]
    for token, logprob in candidates:
        start = token.strip(" \n\t*\"'.▁Ġ").lower()
        for side, word in enumerate(answers):
            if start == word:
                mass[side] += math.exp(logprob)
    if not any(mass):
        raise Unjudged(f"neither {answers[0]} nor {answers[1]} is among the judge's first {len(candidates)} words")
    bound = min((math.exp(logprob) for _, logprob in candidates), default=FLOOR)
    first, second = (m or max(FLOOR, min(bound, 1 - sum(mass))) for m in mass)
    return math.log(first / second)


async def _patiently(endpoint: Endpoint, path: str, data: bytes) -> bytes:
    """Ask again where the server is full or hiccups, waiting twice as long each time. Raises Unjudged or OSError."""
    wait = 0.5
    for attempt in range(RETRIES):
        try:
            return await endpoint.post(path, data)
        except HttpError as error:
            if error.status is not None and error.status < 500 and error.status != 429:
                raise Unjudged(f"the judge's server refuses: {error}") from None
            if attempt == RETRIES - 1:
                raise Unjudged(f"the judge's server fails: {error}") from None
            wait = error.retry_after or wait
        except OSError as error:
            if attempt == RETRIES - 1:
                raise PagodaError(f"the judge does not answer: {error}") from None
        await asyncio.sleep(min(wait, MAX_WAIT_S))
        wait *= 2
    raise AssertionError("unreachable")


class ResponseCache:
    """Answers of a judge on disk, by the model and all that was asked: judging again costs nothing."""

    def __init__(self, path: Path, judge: str) -> None:
        """judge: what tells this judge from others: a model's digest, or a URL and a name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._judge = judge
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL)")

    def get(self, path: str, data: bytes) -> bytes | None:
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (self._key(path, data),)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, path: str, data: bytes, answer: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (self._key(path, data), answer))

    def close(self) -> None:
        self._db.close()

    def _key(self, path: str, data: bytes) -> bytes:
        return hashlib.sha256(b"\0".join([self._judge.encode(), path.encode(), data])).digest()
