"""Every drafter there is, and one that proposes nonsense, on random engines under random loads: no answer changes.

A case is a number. Run more of them, with the last tokens of a failure's number to repeat it:

    PYTHONPATH=src:tests python tests/unit/test_speculation_random.py 0 10000
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from engine_answers import MAX_CONTEXT, Choice, alone, gather
from fake_backend import RECURRENT, VOCAB_SIZE, FakeModel, fake_engine, kv_windows, mix
from fake_constraint import FakeGrammar
from fake_drafters import FakeDrafter
from pagoda.engine.drafters import Drafter
from pagoda.engine.speculation.draft_model import DraftModelDrafter
from pagoda.engine.speculation.ngram import NgramDrafter
from pagoda.engine.speculation.pacing import Pacer
from pagoda.engine.speculation.prediction import PredictionDrafter
from pagoda.engine.speculation.shared_suffix import SharedSuffixDrafter
from pagoda.kv.table import peak_blocks
from pagoda.sampling.sampler import Sampler
from pagoda.types import Batch, Delta, FloatArray, Request, SamplingParams

NUM_CASES = 300
WINDOWS: list[tuple[int | None, ...]] = [(None,), (None,), (20,), (None, 5), (40, None), (3, 33)]
SAMPLER = Sampler(VOCAB_SIZE)


class Disagreeing(FakeModel):
    """A `FakeModel` whose logits are others after some tokens."""

    every = 2

    def answer(self, batch: Batch) -> FloatArray:
        logits = super().answer(batch)
        seeds = mix(batch.tokens[batch.logit_rows].astype(np.uint64), np.uint64(3) + np.zeros(len(logits), np.uint64))
        logits[seeds % self.every == 0] = np.roll(logits[seeds % self.every == 0], 1, axis=1)
        return logits


class Case:
    """One engine and its load, both drawn from a number."""

    def __init__(self, number: int) -> None:
        self.rng = rng = random.Random(number)
        self.windows = rng.choice([*WINDOWS, (None, RECURRENT), (20, RECURRENT)])
        chunk, seqs = rng.randint(1, 40), rng.randint(1, 6)
        self.drafters = self._drafters(chunk, seqs)
        self.engine = fake_engine(
            self.windows,
            [peak_blocks(MAX_CONTEXT, window, chunk) + rng.randint(0, 8) for window in kv_windows(self.windows)],
            num_states=rng.randint(1, 12) if RECURRENT in self.windows else 0,
            max_context=MAX_CONTEXT,
            max_batch_tokens=chunk,
            max_num_seqs=seqs,
            prefix_caching=rng.random() < 0.7,
            sampler=SAMPLER,
            drafters=self.drafters,
            pace=self._pace() if rng.random() < 0.5 else None,
            max_rows=seqs + rng.randint(0, 20),
        )
        self.wanted: dict[str, dict[int, Choice]] = {}
        self.requests: list[Request] = []
        self.deltas: dict[tuple[str, int], list[Delta]] = {}
        self.aborted: set[str] = set()
        self.counts: Counter[str] = Counter()

    def _drafters(self, chunk: int, seqs: int) -> list[Drafter]:
        rng = self.rng
        self.draft = Disagreeing(rng.choice(WINDOWS))
        self.draft.every = rng.choice([1, 3, 10, 1000, 1000])
        blocks = [peak_blocks(MAX_CONTEXT, window, chunk) + rng.randint(0, 8) for window in self.draft.windows]
        self.draft_model = DraftModelDrafter(
            self.draft,
            SAMPLER,
            vocab_size=VOCAB_SIZE,
            windows=self.draft.windows,
            num_blocks=blocks,
            max_context=rng.choice([MAX_CONTEXT, 40]),
            max_batch_tokens=chunk,
            max_num_seqs=rng.randint(1, seqs),
        )
        nonsense = FakeDrafter(accuracy=0.0, longest=rng.randint(1, 12), name="nonsense")
        all_drafters: list[Drafter] = [
            PredictionDrafter(),
            NgramDrafter(),
            SharedSuffixDrafter(most_tokens=60),
            self.draft_model,
            nonsense,
        ]
        return rng.sample(all_drafters, rng.randint(1, len(all_drafters)))

    def _pace(self) -> Pacer:
        pace = Pacer()
        slope = self.rng.choice([0.0, 0.05, 0.3, 1.0])
        for tokens in (1, 4, 16):
            pace.observe(tokens, 1e-4 * (1 + slope * (tokens - 1)))
        return pace

    def _request(self) -> Request:
        rng = self.rng
        few = rng.choice([range(10, 13), range(2, 38)])  # of a few tokens, so that n-grams come back
        beginning = (4,) * 16 if rng.random() < 0.4 else ()
        prompt = beginning + tuple(rng.choice(few) for _ in range(rng.randint(1, 40)))
        mirostat = rng.choice([0, 0, 0, 0, 2])  # it stands in place of top_p
        params = SamplingParams(
            n=rng.choice([1, 1, 1, 2, 3]),
            max_tokens=rng.randint(1, 24),
            min_tokens=rng.choice([0, 0, 1]),
            temperature=rng.choice([0.0, 0.7, 1.0]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            presence_penalty=rng.choice([0.0, 0.0, 0.5]),
            top_p=1.0 if mirostat else rng.choice([1.0, 1.0, 0.8]),
            mirostat=mirostat,
            seed=rng.randint(0, 5),
            stop=rng.choice([(), (), ("ab", "c9"), ("q",)]),
            stop_token_ids=rng.choice([(), (), (11,)]),
            ignore_eos=rng.random() < 0.5,
            logprobs=rng.choice([None, None, 0, 2]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
        )
        return Request(
            f"r{len(self.requests)}",
            prompt,
            params,
            0.0,
            priority=rng.randint(0, 2),
            tenant=rng.choice(["", "a"]),
            constraint=FakeGrammar(rng.randint(0, 60)) if rng.random() < 0.3 else None,
            prediction=tuple(rng.choice(few) for _ in range(20)) if rng.random() < 0.3 else None,
            max_draft_tokens=rng.choice([None, None, None, 0, 2]),
        )

    def add(self) -> None:
        request = self._request()
        self.requests.append(request)
        self.wanted[request.id] = alone(request, self.windows, SAMPLER)
        if request.prediction is not None and self.rng.random() < 0.5:  # one that comes true, but for a token
            right = [*self.wanted[request.id][0][1], 5]
            right[self.rng.randrange(len(right))] = 5
            request = replace(request, prediction=tuple(right))
        self.engine.add(request)

    def step(self) -> None:
        result = self.engine.step()
        self.engine.check()
        self.draft_model.check()
        for delta in result.deltas:
            self.deltas.setdefault((delta.request_id, delta.index), []).append(delta)
        self.counts["steps"] += 1
        self.counts["preempted"] += result.num_preempted
        for count in result.drafts.values():
            self.counts["drafted"] += count.num_draft_tokens
            self.counts["kept"] += sum(count.accepted_per_position)

    def run(self) -> Counter[str]:
        rng = self.rng
        to_come = rng.randint(1, 7)
        while to_come or self.engine.has_work:
            if to_come and rng.random() < 0.3:
                self.add()
                to_come -= 1
            if self.requests and rng.random() < 0.03:
                request_id = rng.choice(self.requests).id
                if self.engine.abort(request_id):
                    self.aborted.add(request_id)
            self.step()
            assert self.counts["steps"] < 20_000, "somebody starves"
        assert self.engine.kv.num_used_blocks == self.draft_model.kv.num_used_blocks == 0
        self.engine.close()
        for request in self.requests:
            self._compare(request)
        self.counts["requests"] = len(self.requests)
        self.counts["aborted"] = len(self.aborted)
        return self.counts

    def _compare(self, request: Request) -> None:
        for index in range(request.params.n):
            got, wanted = gather(self.deltas[request.id, index]), self.wanted[request.id][index]
            if request.id not in self.aborted:
                assert got == wanted
            elif got[4] == "abort":
                assert got[1] == wanted[1][: len(got[1])]


def run_cases(first: int, count: int) -> Counter[str]:
    """What happened in all of them, added up."""
    total: Counter[str] = Counter()
    for number in range(first, first + count):
        try:
            total += Case(number).run()
        except BaseException:
            print(f"case {number}", file=sys.stderr)
            raise
    return total


@pytest.mark.parametrize("first", range(0, NUM_CASES, 50))
def test_no_answer_changes(first: int) -> None:
    total = run_cases(first, 50)
    assert total["kept"] > 50
    assert total["drafted"] > total["kept"] + 100
    assert total["preempted"]
    assert total["aborted"]


if __name__ == "__main__":
    print(dict(run_cases(int(sys.argv[1]), int(sys.argv[2]))))
