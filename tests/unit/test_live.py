"""/live and who may look on; `pagoda top` and `pagoda doctor --url` over it; the history behind it."""

from __future__ import annotations

import json
from contextlib import ExitStack

import httpx
import pytest
from typer.testing import CliRunner

from fake_backend import fake_engine
from fake_engine import FakeEngine, FakeLoaded
from pagoda.cli.main import app
from pagoda.cli.top import spark
from pagoda.engine.snapshot import BLANK, KEPT, BlockRun, take_snapshot
from pagoda.engine.thread import EngineThread
from pagoda.observe.cost import CostSettings
from pagoda.observe.history import History
from pagoda.observe.readings import CpuTimes
from pagoda.observe.roofline import Roofline
from pagoda.types import Request, SamplingParams, SequenceWork, StepResult
from raw_http import connected, post
from serving import HANG_S, serving, wait_for


def request(id: str, prompt: tuple[int, ...], **params: object) -> Request:
    return Request(id, prompt, SamplingParams(ignore_eos=True, **params), 0.0)  # type: ignore[arg-type]


def test_a_snapshot_says_who_holds_which_block() -> None:
    """Two prompts of 40 tokens that share 32: two shared blocks, one of each's own; four blocks are blank."""
    engine = fake_engine(num_blocks=(8,), max_batch_tokens=64)
    engine.add(request("a", (6,) * 40, max_tokens=9))
    engine.step()
    engine.add(request("b", (6,) * 40, max_tokens=9))
    engine.step()
    found = take_snapshot(engine)
    assert [(s.request_id, s.phase, s.prompt_tokens, s.cached_tokens) for s in found.sequences] == [
        ("a", "decode", 40, 0),
        ("b", "decode", 40, 32),
    ]
    assert found.blocks == (
        BlockRun(0, 2, True), BlockRun(0, 1, False), BlockRun(1, 1, False), BlockRun(BLANK, 4, False),
    )  # fmt: skip
    engine.abort("a")
    engine.abort("b")
    engine.step()
    assert {run.holder for run in take_snapshot(engine).blocks} == {KEPT, BLANK}


def test_waiting_and_preempted_sequences_have_no_blocks() -> None:
    engine = fake_engine(num_blocks=(7,), max_num_seqs=1)
    engine.add(request("a", (6,) * 40, max_tokens=9))
    engine.add(request("b", (7,) * 40, max_tokens=9))
    engine.step()
    phases = {s.request_id: (s.phase, s.num_blocks) for s in take_snapshot(engine).sequences}
    assert phases == {"a": ("prefill", 2), "b": ("waiting", 0)}


def test_the_thread_is_asked_between_steps_whether_it_works_or_not() -> None:
    thread = EngineThread(fake_engine())
    with pytest.raises(Exception, match="does not run"):
        thread.ask(take_snapshot).result(1)
    thread.start()
    assert thread.ask(take_snapshot).result(HANG_S).sequences == ()
    with pytest.raises(ZeroDivisionError):
        thread.ask(lambda engine: 1 / 0).result(HANG_S)
    assert thread.alive
    thread.stop()
    with pytest.raises(Exception, match="does not run"):
        thread.ask(take_snapshot).result(1)


def test_history_sums_up_the_last_seconds() -> None:
    """Ten steps a second of 20 ms, 15 of them forward, one sequence each: 10 · 76 MB over 0.15 s is 5.1 GB/s."""
    now = 1000.0
    history = History(
        num_threads=2, max_num_seqs=8, clock=lambda: now, read_cpu=lambda: CpuTimes(now, now * 0.2, now * 1.5)
    )
    history.roofline = Roofline(76e6, 1000, 2e6, bandwidth=10e9, peak=1e9)
    for i in range(120):
        now = 1000.0 + i / 10
        work = (SequenceWork("a", "", None, 0, 1, 0, 0, 100),)
        history.record(
            StepResult(work=work, step_s=0.02, forward_s=0.015, inter_token_s=(0.1,), num_generation_tokens=1,
                       num_running=1, kv_blocks_total=10, kv_blocks_used=4)
        )  # fmt: skip
    facts = history.facts(num_streams=1)
    assert facts.bandwidth_share == pytest.approx(76.1e6 / 0.015 / 10e9)
    assert facts.arithmetic_share == pytest.approx(2e6 / 0.015 / 1e9)
    assert facts.tpot_s == pytest.approx(0.1)
    assert facts.batch == 1
    assert facts.kv_share == 0.4
    assert facts.cpu_share is not None
    assert facts.other_cpus == pytest.approx(1.3)
    lines = history.lines()
    assert {len(line) for line in lines.values()} == {120}
    assert lines["tokens_s"][-2] == pytest.approx(10)
    now += 700
    assert history.facts().num_steps == 0
    assert sum(history.lines()["tokens_s"]) == 0


def test_who_may_look_on() -> None:
    with serving(FakeLoaded(), api_keys=("k",), admin_key="a") as served:
        get = served.client.get
        assert get("/live").status_code == 200
        assert get("/live/state").status_code == 401
        assert get("/live/state", headers={"X-Api-Key": "k"}).status_code == 403
        assert get("/live/state", headers={"X-Api-Key": "a"}).status_code == 200
        stop = {"X-Api-Key": "k", "X-Pagoda-Live": "1"}
        assert served.client.post("/live/stop", json={"id": "x"}, headers=stop).status_code == 403
    with serving(FakeLoaded(), api_keys=("k",)) as served:
        answer = served.client.get("/live/state", headers={"X-Api-Key": "k"})
        assert answer.status_code == 403
        assert "--admin-key" in answer.json()["error"]["message"]
    with serving(FakeLoaded()) as served:
        assert served.client.get("/live/state").json()["situation"] == "idle"


def test_a_request_is_stopped_by_the_page_alone() -> None:
    with serving(FakeLoaded(engine=FakeEngine(step_s=0.01))) as served:
        assert served.client.post("/live/stop", json={"id": "x"}).status_code == 403
        ours = {"X-Pagoda-Live": "1"}
        assert served.client.post("/live/stop", json={"no": 1}, headers=ours).status_code == 400
        assert served.client.post("/live/stop", content=b"{", headers=ours).status_code == 400
        assert served.client.post("/live/stop", json={"id": "x"}, headers=ours).json() == {"stopped": "x"}
        wait_for(lambda: served.loaded.engine.aborted == ["x"])


def test_a_client_that_reads_nothing_is_seen_before_megabytes_wait_for_it() -> None:
    """The operating system would take some megabytes of an answer, more than most answers have."""
    asked = post("/v1/completions", prompt="abc", max_tokens=200, n=32, ignore_eos=True, stream=True)
    with serving(FakeLoaded(engine=FakeEngine(0.001))) as served, connected(served.url) as sock:
        sock.sendall(asked)
        bridge = served.server.service.model().bridge
        wait_for(lambda: bridge.num_slow_streams == 1)
        wait_for(lambda: served.client.get("/live/state").json()["situation"] == "slow client")


def test_events_come_every_second_and_end_with_the_server() -> None:
    with serving(FakeLoaded(), cost=CostSettings(price=1.0)) as served, ExitStack() as stack:
        response = stack.enter_context(served.client.stream("GET", "/live/events"))
        lines = (line for line in response.iter_lines() if line)
        states = [json.loads(next(lines).removeprefix("data: ")) for _ in range(2)]
        served.stop()
        assert not [line for line in lines if not line.startswith(("data: {", ":"))]
    assert states[0]["money"]["usd_per_day"] == 24
    assert states[1]["time"] > states[0]["time"]


def test_top_and_doctor_show_the_same_sentence() -> None:
    with serving(FakeLoaded(engine=FakeEngine(step_s=0.01)), cost=CostSettings(price=1.0)) as served:
        served.ok("/v1/completions", prompt="abc", max_tokens=20)
        sentence = httpx.get(f"{served.url}/live/state").json()["sentence"]
        assert sentence.startswith("at work")
        shown = CliRunner().invoke(app, ["top", "--url", served.url, "--once"], env={"COLUMNS": "200"})
        told = CliRunner().invoke(app, ["doctor", "--url", served.url])
        assert "at work" in shown.output
        assert "tokens/s" in shown.output
        assert "at work: " in told.output
    nobody = CliRunner().invoke(app, ["top", "--url", "http://127.0.0.1:9", "--once"])
    assert "no Pagoda answers" in str(nobody.exception)


def test_sparks() -> None:
    assert spark([0, 1, 2, 4, 8]) == " ▁▂▄█"
    assert spark([0, 0]) == "  "
