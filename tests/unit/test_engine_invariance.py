"""Whatever else happens in the engine, a request gets the tokens that it gets alone; and all blocks come back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_answers import MAX_CONTEXT, Choice, alone, gather
from fake_backend import RECURRENT, VOCAB_SIZE, FakeDevice, FakeModel, FakeRankingDevice, fake_engine, kv_windows
from fake_constraint import FakeGrammar
from fake_drafters import FakeDrafter
from pagoda.engine.offload import KVOffload
from pagoda.kv.block_files import BlockFiles
from pagoda.kv.table import peak_blocks
from pagoda.sampling.reference import ReferenceSampler
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.top_k import TopKSampler
from pagoda.types import Delta, Request, SamplingParams

# Prompts are made of few pieces, so that many share blocks, and many have equal blocks after different beginnings.
PIECES = [tuple((i * step + 3) % 38 + 2 for i in range(16)) for step in (7, 11)] + [(4,) * 8]

prompts = st.builds(
    lambda pieces, end: (sum(pieces, ()) + end)[:75],
    st.lists(st.sampled_from(PIECES), max_size=5),
    st.sampled_from([(2,), (0,), (31, 5), (9, 9, 9), PIECES[0]]),
)

params = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 1, 2, 4]),
    max_tokens=st.integers(1, 20),
    min_tokens=st.just(0),
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.sampled_from([None, 5]),
    stop=st.sampled_from([(), ("ab", "c9"), ("q",)]),
    stop_token_ids=st.sampled_from([(), (11,)]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, None, 0, 2]),
    prompt_logprobs=st.sampled_from([None, None, None, 1]),
)

requests = st.builds(
    Request,
    id=st.just(""),
    prompt_token_ids=prompts,
    params=params,
    arrival=st.just(0.0),
    priority=st.integers(0, 2),
    tenant=st.sampled_from(["", "a", "b"]),
    cache_salt=st.sampled_from(["", "", "salt"]),
    constraint=st.one_of(st.none(), st.none(), st.builds(FakeGrammar, st.integers(0, 60))),
)


class EngineMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations and steps, on an engine of random and often too small dimensions."""

    @initialize(
        windows=st.sampled_from(
            [(None,), (20,), (None, 5), (40, None), (3, 33), (None, RECURRENT), (20, RECURRENT, None)]
        ),
        spare_states=st.integers(0, 8),
        max_batch_tokens=st.integers(1, 40),
        max_num_seqs=st.integers(1, 6),
        spare=st.integers(0, 8),
        spare_rows=st.integers(0, 20),
        prefix_caching=st.booleans(),
        device=st.sampled_from([FakeModel, FakeDevice, FakeRankingDevice]),
        accuracy=st.sampled_from([None, 0.0, 0.6, 1.0]),
        offloads=st.booleans(),
    )
    def start(
        self,
        windows: tuple[int | None, ...],
        max_batch_tokens: int,
        max_num_seqs: int,
        spare_states: int,
        spare: int,
        spare_rows: int,
        prefix_caching: bool,
        device: type[FakeModel],
        accuracy: float | None,
        offloads: bool,
    ) -> None:
        self.folder = TemporaryDirectory()
        offloads = offloads and RECURRENT not in windows  # whose states are not kept in files
        files = BlockFiles(Path(self.folder.name), 40_000, "fake") if offloads else None
        self.windows = windows
        self.model = device(windows)
        self.drafter = FakeDrafter(accuracy=accuracy or 0.0)
        self.sampler = Sampler(VOCAB_SIZE) if device is FakeRankingDevice else ReferenceSampler()
        self.engine = fake_engine(
            windows,
            [peak_blocks(MAX_CONTEXT, window, max_batch_tokens) + spare for window in kv_windows(windows)],
            num_states=1 + spare_states if RECURRENT in windows else 0,
            model=self.model,
            max_context=MAX_CONTEXT,
            max_batch_tokens=max_batch_tokens,
            max_num_seqs=max_num_seqs,
            prefix_caching=prefix_caching,
            sampler=TopKSampler(VOCAB_SIZE) if device is FakeRankingDevice else self.sampler,
            drafters=[] if accuracy is None else [self.drafter],
            max_rows=max_num_seqs + spare_rows,
            offload=None if files is None else KVOffload(self.model, files),
        )
        self.answers: dict[str, dict[int, Choice]] = {}
        self.requests: dict[str, Request] = {}
        self.deltas: dict[tuple[str, int], list[Delta]] = {}
        self.aborted: set[str] = set()
        self.num_preempted = 0

    @rule(request=requests)
    def add(self, request: Request) -> None:
        request = replace(request, id=f"r{len(self.requests)}")
        self.requests[request.id] = request
        self.answers[request.id] = alone(request, self.windows, self.sampler)
        for index, answer in self.answers[request.id].items():
            self.drafter.answers[request.id, index] = [*request.prompt_token_ids, *answer[1]]
        self.engine.add(request)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.one_step()

    @rule(active=st.booleans())
    def speculate(self, active: bool) -> None:
        self.drafter.active = active

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        if self.engine.abort(request_id):
            self.aborted.add(request_id)

    @rule(which=st.integers(0, 999), how=st.integers(0, 2))
    def spoil(self, which: int, how: int) -> None:
        """A file of the KV that was moved out is cut short or overwritten."""
        files = sorted(Path(self.folder.name).glob("fake/??/*-?"))
        if files:
            path = files[which % len(files)]
            with suppress(FileNotFoundError):  # it has made room just now
                content = path.read_bytes()
                path.write_bytes((content[:-1], b"", content[:-8] + b"x" * 8)[how])

    @invariant()
    def in_order(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def one_step(self) -> None:
        had_work = self.engine.scheduler.has_work or bool(self.engine._restoring)
        num_batches = len(self.model.batches)
        result = self.engine.step()
        has_run = len(self.model.batches) > num_batches
        if isinstance(self.model, FakeDevice) and self.engine.offload is not None:
            has_run = has_run or had_work  # blocks that are copied out have a device compute what was launched at once
        assert has_run or not had_work, "a step without progress"
        assert had_work or not has_run or isinstance(self.model, FakeDevice), "a step for nobody"
        if had_work:
            assert sum(self.model.batches[-1]) <= self.engine.scheduler.max_batch_tokens
        self.num_preempted += result.num_preempted
        for delta in result.deltas:
            own = self.deltas.setdefault((delta.request_id, delta.index), [])
            assert not own or own[-1].finish_reason is None, "a delta after the last"
            own.append(delta)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        num_steps = 0
        while self.engine.has_work:
            self.one_step()
            self.engine.check()
            num_steps += 1
            assert num_steps < 20_000, "somebody starves"
        assert self.engine.kv.num_used_blocks == 0
        self.engine.close()
        self.folder.cleanup()
        for request in self.requests.values():
            self.compare(request)

    def compare(self, request: Request) -> None:
        wanted = self.answers[request.id]
        for index in range(request.params.n):
            got = gather(self.deltas[request.id, index])
            if request.id not in self.aborted:
                assert got == wanted[index]
            elif got[4] == "abort":
                assert got[1] == wanted[index][1][: len(got[1])]
                assert request.params.stop or wanted[index][0].startswith(got[0])


TestEngineMachine = pytest.mark.slow(EngineMachine.TestCase)
TestEngineMachine.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
