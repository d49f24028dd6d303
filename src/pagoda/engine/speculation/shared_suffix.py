"""Drafts what other requests' answers went on with after the same words: agents and batch jobs repeat themselves.

Answers are shared within a scope only: tenant, cache salt, adapter, and the prompt's beginning, which is the system
prompt. Memory is bounded; the answers that were used least recently go first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from pagoda.engine.drafters import DraftQuery, Key, Proposal
from pagoda.engine.speculation.matching import Match, NgramIndex, best_match

MOST_TOKENS = 200_000  # of all answers that are kept: with their indexes some 4 MB
LONGEST_ANSWER = 4096
LEAST_TOKENS = 12  # shorter answers say nothing
MOST_ANSWERS = 8  # of a scope, that are compared in one step
SCOPE_TOKENS = 24  # of a prompt's beginning


@dataclass(slots=True, eq=False)
class _Answer:
    tokens: array[int]
    index: NgramIndex = field(default_factory=NgramIndex)

    def __post_init__(self) -> None:
        self.index.extend(self.tokens, len(self.tokens))


@dataclass(frozen=True, slots=True)
class _Running:
    scope: Hashable
    tokens: array[int]
    prompt_len: int


class SharedSuffixDrafter:
    """A `Drafter` over the answers of requests that have ended."""

    name = "shared_suffix"
    active = True

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._most_tokens = most_tokens
        self._running: dict[Key, _Running] = {}
        self._scopes: OrderedDict[Hashable, list[_Answer]] = OrderedDict()  # the least recently used first
        self.num_tokens = 0

    def price(self, queries: Seq[DraftQuery]) -> None:
        """Looking up takes next to nothing."""

    def propose(self, queries: Seq[DraftQuery]) -> list[Proposal]:
        return [self._propose(query) for query in queries]

    def _propose(self, query: DraftQuery) -> Proposal:
        running = self._running.get(query.key)
        if running is None:
            running = self._running[query.key] = _Running(_scope(query), query.tokens, query.prompt_len)
        answers = self._scopes.get(running.scope)
        if not answers:
            return Proposal()
        self._scopes.move_to_end(running.scope)
        found: list[tuple[Match, _Answer]] = []
        for answer in answers[: -MOST_ANSWERS - 1 : -1]:
            match = best_match(answer.index, answer.tokens, query.tokens)
            if match is not None:
                found.append((match, answer))
        if not found:
            return Proposal()
        match, answer = max(found, key=lambda pair: pair[0].length)
        return Proposal(answer.tokens[match.end : match.end + query.max_tokens].tolist(), match.strength)

    def verified(self, key: Key, num_proposed: int, num_accepted: int) -> None:
        """Nothing was advanced."""

    def forget(self, key: Key) -> None:
        """Keep the answer for others."""
        running = self._running.pop(key, None)
        if running is None or len(running.tokens) - running.prompt_len < LEAST_TOKENS:
            return
        answer = _Answer(running.tokens[running.prompt_len :][:LONGEST_ANSWER])
        self._scopes.setdefault(running.scope, []).append(answer)
        self._scopes.move_to_end(running.scope)
        self.num_tokens += len(answer.tokens)
        self._shrink()

    def _shrink(self) -> None:
        while self.num_tokens > self._most_tokens:
            scope, answers = next(iter(self._scopes.items()))
            self.num_tokens -= len(answers.pop(0).tokens)
            if not answers:
                del self._scopes[scope]


def _scope(query: DraftQuery) -> Hashable:
    request = query.request
    beginning = tuple(request.prompt_token_ids[:SCOPE_TOKENS])
    digest = None if request.adapter is None else request.adapter.digest
    return request.tenant, request.cache_salt, digest, beginning
