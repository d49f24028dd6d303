"""Shadow checks: some hits by meaning are answered afresh in the background, and both answers are compared.

By their embeddings; and where there is a judge, by what it says, since `you can` and `you cannot` lie close together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal, Protocol

from pagoda.cache.cache import Candidate, SemanticCache
from pagoda.observe.cache_series import CacheSeries
from pagoda.server.call import Call, Serve
from pagoda.server.replay import answer_of

logger = logging.getLogger("pagoda.cache")

SURE = 0.3  # log odds from which on a judge's verdict counts
JUDGE_S = 60.0  # that a judge may take
LATER = 1000  # by so much less urgent than what clients wait for

Verdict = Literal["same", "different", "unsure"]


class Judge(Protocol):
    """`pagoda.evals.judge.Judge` is one."""

    async def agree(self, question: str, first: str, second: str) -> float:
        """Log odds that both answers tell the same. May fail in any way."""

    def close(self) -> None:
        """Let go of connections."""


class Shadow:
    """Checks hits against fresh answers. Lives on the event loop."""

    def __init__(self, cache: SemanticCache, series: CacheSeries, open_judge: Callable[[], Awaitable[Judge]] | None):
        """`open_judge` is called when a judge is wanted first; None: there is none."""
        self._cache = cache
        self._series = series
        self._open_judge = open_judge
        self._judge: Judge | None = None

    async def check(self, question: str, call: Call, serve: Serve, candidate: Candidate) -> None:
        """Answer the call afresh, after those who wait, and learn from it. Whatever fails is left: there will be
        other hits to check."""
        try:
            fresh = await _answer(call, serve)
            if fresh is None:
                return
            said = await self._verdict(question, candidate.entry.answer.text, fresh)
            if said == "unsure":  # whom embeddings would only contradict by chance
                return
            verdict = None if said is None else said == "same"
            await asyncio.to_thread(self._cache.compare, candidate, fresh, hit=True, verdict=verdict)
        except Exception as error:  # overloaded, stopped
            logger.info("a hit was not checked", extra={"facts": {"why": repr(error)[:300]}})

    def close(self) -> None:
        if self._judge is not None:
            self._judge.close()

    async def _verdict(self, question: str, kept: str, fresh: str) -> Verdict | None:
        """What the judge says; None: there is none, it need not be asked, or it does not answer."""
        if self._open_judge is None or kept.strip() == fresh.strip():
            return None
        try:
            self._judge = self._judge or await self._open_judge()
            odds = await asyncio.wait_for(self._judge.agree(question, kept, fresh), JUDGE_S)
        except Exception as error:  # away, slow, no verdict
            self._series.judged.add("failed")
            logger.warning("the judge did not compare two answers", extra={"facts": {"why": repr(error)[:300]}})
            return None
        verdict: Verdict = "unsure" if abs(odds) < SURE else "same" if odds > 0 else "different"
        self._series.judged.add(verdict)
        return verdict


async def _answer(call: Call, serve: Serve) -> str | None:
    """What the model says now, at nobody's expense; None: nothing that could be kept."""
    salt = f"shadow {call.tenant} {call.requests[0].cache_salt}"  # its prefix blocks are nobody else's
    requests = tuple(
        replace(r, id=f"{r.id}-shadow", priority=r.priority + LATER, tenant="", cache_salt=salt) for r in call.requests
    )
    stream = await serve(replace(call, requests=requests, tenant="", deadline=None, headers={}))
    try:
        deltas = [delta async for arrived in stream for delta in arrived]
    finally:
        stream.close()
    answer = answer_of(call, deltas)
    return None if answer is None else answer.text
