"""The cache behind its layers: looking questions up, keeping answers, learning which hits were wrong.

Everything here may wait for the store or compute, so it runs on threads of the caller's.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import orjson

from pagoda.cache.checked import CheckedHits
from pagoda.cache.embedder import Embedder
from pagoda.cache.entry import Answer, Entry, entry_id
from pagoda.cache.evidence import Evidence
from pagoda.cache.policy import Policy, Question
from pagoda.cache.row import is_unit
from pagoda.cache.store import Selector, Store
from pagoda.cache.verifier import Verifier
from pagoda.types import FloatArray

log = logging.getLogger(__name__)

CANDIDATES = 4  # nearest entries that the verifier looks at
MIN_COSINE = 0.7  # of candidates: below it no pair of the verifier's data was a repeat that it would have found
SWEEP_EVERY = 256  # writes
REMEMBERED = 10_000  # hits by meaning, so that one can be called wrong
SAME_ANSWER, OTHER_ANSWER = 0.9, 0.6  # cosines of two answers; between them they tell nothing


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kept question near to the one asked."""

    entry: Entry
    similarity: float  # cosine
    log_odds: float  # of wanting the same answer, by the verifier


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for a question."""

    kind: Literal["exact", "normalized", "meaning"] | None  # None: nothing that may be given
    why: str
    candidate: Candidate | None = None  # also a near one that may not be given

    @property
    def entry(self) -> Entry | None:
        return self.candidate.entry if self.kind is not None and self.candidate is not None else None


class SemanticCache:
    """One store with what decides about it."""

    def __init__(
        self,
        store: Store,
        embedder: Embedder | None,
        verifier: Verifier | None,
        policy: Policy,
        *,
        max_wrong: float = 0.02,
        max_entries: int = 100_000,
        notebook: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without an embedder, or a verifier for it, only repeats of the same normal form are hits.

        `notebook`: a file in which the evidence is kept, so that it outlives this process.
        """
        self.store = store
        self.embedder = embedder
        self.policy = policy
        self.verifier = verifier
        self.evidence = Evidence(verifier.regions if verifier is not None else [], max_wrong)
        self.checked = CheckedHits()
        self.max_entries = max_entries
        self._notebook = notebook
        self._read_notebook()
        self.num_evicted = 0
        self._clock = clock
        self._writes = 0
        self._counted: tuple[float, int] | None = None  # when, and how many entries there were
        self._hits: OrderedDict[str, float] = OrderedDict()  # the log odds of the last hit by meaning of an entry

    def find_same(self, question: Question) -> Found:
        """An entry of the same normal form. Raises StoreError."""
        entry = next(self.store.entries(Selector(key=question.key)), None)
        if entry is None or not self._is_usable(entry, question):
            return Found(None, "expired" if entry is not None else "no entry")
        kind: Literal["exact", "normalized"] = "exact" if entry.question == question.text else "normalized"
        self.evidence.served()
        self._renew(entry)
        return Found(kind, kind, Candidate(entry, 1.0, float("inf")))

    def embed(self, text: str) -> FloatArray | None:
        """The text's vector; None: the embedder gives none that could be compared."""
        if self.embedder is None:
            return None
        vector = np.asarray(self.embedder.embed([text])[0], np.float32)
        return vector if is_unit(vector) else None

    def find_alike(self, question: Question, vector: FloatArray) -> Found:
        """The entry that most surely wants the same answer, if it may be given. Raises StoreError."""
        if self.verifier is None or self.embedder is None:
            return Found(None, "no verifier for this embedder")
        near = self.store.nearest(question.partition, self.embedder.digest, vector, CANDIDATES)
        near = [(s, entry) for s, entry in near if s >= MIN_COSINE and self._is_usable(entry, question)]
        if not near:
            return Found(None, "nothing near")
        vectors = np.stack([entry.vector for _, entry in near if entry.vector is not None])
        odds = self.verifier.log_odds(question.text, vector, [entry.question for _, entry in near], vectors)
        best = int(np.argmax(odds))
        candidate = Candidate(near[best][1], near[best][0], float(odds[best]))
        decision = self.evidence.decide(candidate.log_odds)
        if not decision.is_hit:
            return Found(None, decision.why, candidate)
        self.evidence.served(candidate.log_odds)
        self._remember(candidate)
        self._renew(candidate.entry)
        return Found("meaning", "meaning", candidate)

    def keep(self, question: Question, answer: Answer, vector: FloatArray | None) -> Entry:
        """Keep an answer. Raises StoreError."""
        now = self._clock()
        entry = Entry(
            id=entry_id(question.key),
            partition=question.partition,
            key=question.key,
            tenant=question.tenant,
            model=question.model,
            question=question.text,
            answer=answer,
            vector=vector if vector is not None and is_unit(vector) else None,
            space="" if self.embedder is None else self.embedder.digest,
            created=now,
            expires=now + question.ttl,
            ttl=question.ttl,
            sliding=self.policy.sliding,
            tags=question.tags,
        )
        self.store.put(entry)
        self._writes += 1
        if self._writes % SWEEP_EVERY == 0:
            self.sweep()
        return entry

    def sweep(self) -> int:
        """Remove what has expired, and the oldest of what is too much. → how many. Raises StoreError."""
        removed = self.store.delete(Selector(expired_at=self._clock()))
        removed += self.store.delete(Selector(all_but=self.max_entries))
        self.num_evicted += removed
        self._write_notebook()
        return removed

    def mark_wrong(self, selector: Selector) -> bool:
        """A person says that the entry's answer was wrong for what was asked: forget it, and learn from it.

        → whether it was there. Raises StoreError.
        """
        entry = next(self.store.entries(selector), None)
        if entry is None:
            return False
        self.store.delete(selector)
        log_odds = self._hits.pop(entry.id, None)
        if log_odds is not None:
            self._learn(Candidate(entry, 0.0, log_odds), same=False, hit=True)
        return True

    def compare(self, candidate: Candidate, fresh: str, *, hit: bool, verdict: bool | None = None) -> bool | None:
        """Learn from a fresh answer whether it is the one that the candidate has; None: it cannot be told.

        `verdict`: what a judge said of both, which wins over how near they are to each other.
        """
        same = verdict if verdict is not None else self._is_same(candidate.entry.answer.text, fresh)
        if same is not None:
            self._learn(candidate, same=same, hit=hit)
        return same

    def _is_same(self, kept: str, fresh: str) -> bool | None:
        """Whether both answers say the same, by their embeddings; None: it cannot be told."""
        if kept.strip() == fresh.strip():
            return True
        if self.embedder is None:
            return None
        vectors = self.embedder.embed([kept, fresh])
        similarity = float(vectors[0] @ vectors[1])
        if OTHER_ANSWER < similarity < SAME_ANSWER or not np.isfinite(similarity):
            return None
        return similarity >= SAME_ANSWER

    def _learn(self, candidate: Candidate, *, same: bool, hit: bool) -> None:
        self.evidence.learn(candidate.log_odds, same, hit=hit)
        if hit:
            self.checked.add(candidate.entry.tenant, wrong=not same)

    def now(self) -> float:
        """time.time(), by the clock that lifetimes are counted with."""
        return self._clock()

    def num_entries(self, max_age: float) -> int:
        """Entries of the store, counted not longer than `max_age` seconds ago. Raises StoreError."""
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] > max_age:
            self._counted = now, self.store.count(Selector())
        return self._counted[1]

    def close(self) -> None:
        self._write_notebook()
        self.store.close()

    def _read_notebook(self) -> None:
        if self._notebook is None or not self._notebook.is_file():
            return
        try:
            shape = orjson.loads(self._notebook.read_bytes())
            self.evidence.restore(shape)
            self.checked.restore(shape.get("tenants", {}))
        except (OSError, ValueError) as error:
            log.warning("%s is not read, evidence starts anew: %s", self._notebook, error)

    def _write_notebook(self) -> None:
        if self._notebook is None:
            return
        try:
            self._notebook.parent.mkdir(parents=True, exist_ok=True)
            part = self._notebook.with_suffix(".part")
            part.write_bytes(orjson.dumps(self.evidence.to_json() | {"tenants": self.checked.to_json()}))
            part.replace(self._notebook)
        except OSError as error:
            log.warning("%s is not written: %s", self._notebook, error)

    def _is_usable(self, entry: Entry, question: Question) -> bool:
        """Alive, of this partition whatever the store says, and no longer than was asked for."""
        fits = question.max_tokens is None or entry.answer.completion_tokens <= question.max_tokens
        return entry.partition == question.partition and entry.is_alive(self._clock()) and fits

    def _renew(self, entry: Entry) -> None:
        now = self._clock()
        if entry.sliding and entry.expires - now < entry.ttl * 0.9:  # not at every hit
            self.store.put(replace(entry, expires=now + entry.ttl), renew=True)

    def _remember(self, candidate: Candidate) -> None:
        self._hits[candidate.entry.id] = candidate.log_odds
        self._hits.move_to_end(candidate.entry.id)
        while len(self._hits) > REMEMBERED:
            self._hits.popitem(last=False)


def is_shadowed(share: float, chance: Callable[[], float] = random.random) -> bool:
    """Whether this hit is one of those that are answered afresh, to be compared."""
    return chance() < share
