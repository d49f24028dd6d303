"""The engine's bench on a tiny model in numpy: it counts right, and leaves the engine as it found it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pagoda.benchmark.engine import (
    BatchTimes,
    Bench,
    Ceilings,
    bench_settings,
    decode_slack,
    model_work,
    result_of,
)
from pagoda.benchmark.profile import profile
from pagoda.config import EngineSettings
from pagoda.engine.load import LoadedEngine, load_engine
from pagoda.engine.memory import peak_memory
from pagoda.errors import CapacityError
from pagoda.types import RawTensor, StepResult
from tiny_models import TINY, write_gguf

PROMPT, GEN, BATCH = 24, 5, 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(Path(path), TINY["llama"])
    asked = EngineSettings(str(path), backend="reference", max_batch_tokens=16, kv_type="f32")
    return bench_settings(asked, PROMPT, GEN, [1, BATCH])


@pytest.fixture(scope="module")
def loaded(settings: EngineSettings) -> Iterator[LoadedEngine]:
    loaded = load_engine(settings)
    yield loaded
    loaded.close()


def test_settings_hold_the_largest_batch(settings: EngineSettings) -> None:
    assert not settings.prefix_caching
    assert settings.max_num_seqs == BATCH
    assert settings.max_context == PROMPT + GEN + decode_slack(settings, PROMPT, BATCH)
    assert bench_settings(EngineSettings(max_batch_tokens=4), 8, 8, [9]).max_batch_tokens == 9


@pytest.mark.parametrize("batch", [1, BATCH])
def test_a_run_prefills_every_prompt_and_decodes_every_sequence(
    loaded: LoadedEngine, settings: EngineSettings, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[StepResult] = []
    step = loaded.core.step
    monkeypatch.setattr(loaded.core, "step", lambda: results.append(step()) or results[-1])
    slack = decode_slack(settings, PROMPT, BATCH)
    run = Bench(loaded.core, prompt=PROMPT, gen=GEN, slack=slack).run(batch)
    assert sum(result.num_prompt_tokens for result in results) == 2 * batch * PROMPT  # for prefill and for decode
    pure = [r for r in results if r.num_generation_tokens == batch and not r.num_prompt_tokens]
    assert len(pure) >= GEN
    assert len(run.ttfts) == batch
    assert run.prefill == max(run.ttfts)
    assert 0 < run.forward < run.decode
    assert not loaded.core.has_work
    loaded.core.check()


def test_each_prompt_is_another(loaded: LoadedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = []
    enter = loaded.core.enter
    monkeypatch.setattr(
        loaded.core, "enter", lambda request: (prompts.append(request.prompt_token_ids), enter(request))
    )
    Bench(loaded.core, prompt=PROMPT, gen=1, slack=9).run(2)
    assert len(set(prompts)) == 4


def test_a_batch_that_does_not_fit_is_refused(settings: EngineSettings) -> None:
    block = 2 * 2 * 2 * 16 * 16 * 4  # layers, K and V, heads, head size, tokens, f32
    small = load_engine(replace(settings, kv_memory_bytes=4 * block))
    try:
        with pytest.raises(CapacityError, match="does not hold the batch"):
            Bench(small.core, prompt=PROMPT, gen=GEN, slack=8).run(BATCH)
    finally:
        small.close()


def tensor(name: str, *shape: int) -> RawTensor:
    return RawTensor(name, "F16", shape, np.zeros(2 * int(np.prod(shape)), np.uint8))


@pytest.mark.parametrize("tied", [False, True])
def test_the_least_work(tied: bool) -> None:
    tensors = [tensor("token_embd.weight", 100, 8), tensor("blk.0.ffn_up.weight", 32, 8), tensor("norm.weight", 8)]
    tensors += [] if tied else [tensor("output.weight", 100, 8)]
    work = model_work(tensors, [None, 4], [1600, 160])
    assert work.weight_bytes == 2 * (32 * 8 + 100 * 8)
    assert (work.layer_weights, work.head_weights) == (256, 800)
    assert work.kv_bytes(10) == 10 * 100 + 4 * 10


@pytest.mark.parametrize("name", ["blk.0.ffn_up_exps.weight", "layers.0.mlp.experts.3.up_proj.weight"])
def test_of_experts_only_those_count_that_a_token_uses(name: str) -> None:
    shared = tensor("layers.0.mlp.shared_experts.up_proj.weight", 16, 8)
    work = model_work([tensor("output.weight", 100, 8), tensor(name, 8, 32, 8), shared], [], [], experts_share=2 / 8)
    assert work.layer_weights == 2 * 32 * 8 + 16 * 8
    assert work.weight_bytes == 2 * (2 * 32 * 8 + 16 * 8 + 100 * 8)


def test_the_report_is_the_median_beside_the_ceilings() -> None:
    work = model_work([tensor("token_embd.weight", 100, 8), tensor("up.weight", 32, 8)], [None], [16 * 1000])
    runs = [BatchTimes(prefill, (0.1, 0.2), decode, 0.9 * decode, 0.01) for prefill, decode in ((1, 4), (2, 2), (9, 1))]
    ceilings = Ceilings(read_bandwidth=100_000, int8_peak=None)
    report = result_of(2, runs, prompt=64, gen=16, work=work, ceilings=ceilings)
    assert (report["batch"], report["prefill_tok_s"], report["decode_tok_s"]) == (2, 64, 16)
    assert (report["ttft_ms"], report["tpot_ms"], report["between_share"]) == (150, 125, 0.1)
    step_bytes = 2 * (256 + 800) + 2 * 72 * 1000
    assert report["bandwidth_share"] == pytest.approx(step_bytes * 8 / 100_000, abs=1e-4)
    assert report["compute_share"] is None
    assert [run["decode_tok_s"] for run in report["runs"]] == [8, 16, 32]


class FakeProgram:
    """Each stage takes a second, whatever ran."""

    profiling = False

    def take_profile(self) -> list[tuple[str, str, float, float, float]]:
        assert self.profiling
        product, norm = ("linear", "product"), ("rowwise", "norm")
        return [(*product, 1.0, 50.0, 10.0), (*norm, 0.5, 0.0, 0.0), (*product, 1.0, 50.0, 90.0)]


def test_a_profile_adds_up_stages_of_one_label(loaded: LoadedEngine, settings: EngineSettings) -> None:
    program = FakeProgram()
    bench = Bench(loaded.core, prompt=PROMPT, gen=GEN, slack=decode_slack(settings, PROMPT, BATCH))
    report = profile(bench, program, BATCH, Ceilings(100, 200))
    assert not program.profiling
    assert (report["batch"], report["decode_steps"]) == (BATCH, GEN)
    first, second, *outside = report["decode"]
    assert (first["op"], first["stages"], first["seconds"]) == ("product", 2, 2.0)
    assert (first["bandwidth_share"], first["compute_share"]) == (0.5, 0.25)
    assert (second["op"], second["bandwidth_share"]) == ("norm", None)
    assert [row["op"] for row in outside] == ["sampling", "scheduling and text"]
    assert sum(row["time_share"] for row in report["decode"]) == pytest.approx(1, abs=1e-3)


def test_peak_memory_is_in_bytes() -> None:
    assert 10_000_000 < peak_memory() < 1 << 40
