"""With the model's own head as drafter answers are those without it, whatever else happens to a sequence."""

from __future__ import annotations

import itertools
import json
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fake_backend import VOCAB_SIZE, FakeModel, fake_engine
from fake_constraint import FakeGrammar
from pagoda import LLM, SamplingParams
from pagoda.backends.base import run_batch
from pagoda.config import EngineSettings
from pagoda.engine.engine import Engine
from pagoda.engine.load import load_engine
from pagoda.engine.speculation import mtp
from pagoda.engine.speculation.choose import check_speculation, wants_head
from pagoda.engine.speculation.mtp import MtpDrafter
from pagoda.errors import CapacityError, ConfigError
from pagoda.grammar.source import GrammarSource
from pagoda.sampling.reference import ReferenceSampler
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, LoadedAdapter, Request
from tiny_heads import PROMPTS, SETTINGS, Recorded, check_as_pays, headed_llm, with_head
from tiny_models import TINY, weights, write_safetensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "model", with_head("glm4moe"))


def generated(llm: LLM, params: SamplingParams, **options: Any) -> list[list[list[int]]]:
    """The tokens of each choice of each prompt."""
    return [[list(c.token_ids) for c in output.outputs] for output in llm.generate(PROMPTS, params, **options)]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 16},  # prompts in chunks
        {"kv_memory_bytes": 1 << 17},  # sequences are preempted, and the head gives some up
        {"prefix_caching": False},
        {"kv_type": "int8"},
    ],
)
def test_answers_are_those_without(
    options: dict[str, Any], temperature: float, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_as_pays(monkeypatch)
    recorded = Recorded(monkeypatch)
    params = SamplingParams(temperature=temperature, max_tokens=18, seed=5, n=2, ignore_eos=True)
    plain = headed_llm(model, speculation=("off",), **options)
    drafted = headed_llm(model, **options)
    expected = generated(plain, params)
    for _ in range(2):  # the second time from the prefix cache
        assert generated(drafted, params) == expected
    assert any(draft for _, draft in recorded.drafts)
    assert drafted.loaded.draft is not None


@pytest.mark.parametrize("name", ["qwen35", "glm4lite"])  # states that go back, latent attention
def test_in_other_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_as_pays(monkeypatch)
    folder = write_safetensors(tmp_path / "model", with_head(name))
    params = SamplingParams(temperature=0.7, max_tokens=12, seed=5, n=2, ignore_eos=True)
    plain, drafted = headed_llm(folder, speculation=("off",)), headed_llm(folder, max_batch_tokens=32)
    expected = generated(plain, params)
    assert [generated(drafted, params) for _ in range(2)] == [expected, expected]


class OracleHead(FakeModel):
    """A head that knows what follows a hidden state and the token after it, and takes no other two together."""

    def __init__(self) -> None:
        super().__init__((None,))
        self.truth: dict[tuple[float, int], tuple[int, float]] = {}  # → the token after, and the hidden state before it

    def answer(self, batch: Batch) -> FloatArray:
        logits = super().answer(batch)
        assert batch.given is not None
        pairs = list(zip(batch.given[:, 0].tolist(), batch.tokens.tolist(), strict=True))
        assert all(pair in self.truth for pair in pairs)
        known = [self.truth[pairs[row]] for row in batch.logit_rows]
        for row, (token, _) in enumerate(known):
            logits[row, token] += 100.0
        self._hidden = np.array([[hidden] for _, hidden in known], np.float32).reshape(-1, 1)
        return logits

    def learn(self, tokens: list[int]) -> None:
        """What a sequence of these tokens is made of; of its last two the token after is anything."""
        model, count = FakeModel((None,)), len(tokens)
        model.allocate_kv((-(-count // BLOCK_SIZE),))
        places = np.arange(count, dtype=np.int32)
        blocks = np.arange(-(-count // BLOCK_SIZE), dtype=np.int32)[None]
        starts, lens = np.array([0, count], np.int32), np.array([count], np.int32)
        batch = Batch(np.array(tokens, np.int32), places, starts, lens, (blocks,), places[:0], hidden_rows=places)
        run_batch(model, batch)
        hidden = model.hidden_states()[:, 0].tolist()
        for i in range(count - 1):
            after = tokens[i + 2] if i + 2 < count else 0
            self.truth[hidden[i], tokens[i + 1]] = (after, hidden[i + 1])


def mixed(temperature: float) -> list[Request]:
    rng = random.Random(7)
    requests = []
    for i in range(12):
        prompt = tuple(rng.randrange(10, 13) for _ in range(rng.randrange(3, 50)))
        params = {"max_tokens": rng.randrange(1, 40), "seed": i, "n": 1 + i % 3, "temperature": temperature}
        own: dict[str, Any] = {"max_draft_tokens": (None, None, 2, 0)[i % 4], "tenant": "ab"[i % 2]}
        own |= {"constraint": FakeGrammar(i)} if i % 4 == 1 else {}
        own |= {"adapter": LoadedAdapter("a", "digest", "placed")} if i % 5 == 2 else {}
        requests.append(Request(str(i), prompt, SamplingParams(**params, ignore_eos=True), 0.0, **own))
    return requests


def answered(engine: Engine, requests: list[Request], drafter: MtpDrafter | None = None, aborted: str = "") -> Any:
    """→ the tokens of each choice; `aborted` goes after some steps."""
    found: dict[tuple[str, int], list[int]] = {}
    for request in requests:
        engine.add(request)
    for step in itertools.count():
        if not engine.has_work:
            return found
        if step == 5 and aborted:
            engine.abort(aborted)
        for delta in engine.step().deltas:
            found.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
        engine.check()
        if drafter is not None:
            drafter.check()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("num_blocks", "chunk"), [(48, 32), (9, 32), (48, 9)])  # 9 blocks: sequences are preempted
@pytest.mark.parametrize("waiting", [3, 256])
def test_each_hidden_state_meets_the_token_after_it(
    temperature: float, num_blocks: int, chunk: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtp, "FEWEST_WAITING", waiting)
    monkeypatch.setattr(mtp, "MOST_WAITING", waiting)
    options: dict[str, Any] = {"num_blocks": [num_blocks], "max_batch_tokens": chunk, "max_rows": 40}
    head, requests = OracleHead(), mixed(temperature)
    plain = answered(fake_engine(**options), requests)
    for request in requests:
        for index in range(request.params.n):
            head.learn([*request.prompt_token_ids, *plain[request.id, index]])
    drafter = MtpDrafter(
        head,
        ReferenceSampler(),
        vocab_size=VOCAB_SIZE,
        windows=(None,),
        num_blocks=[num_blocks],
        max_context=96,
        max_batch_tokens=chunk,
        max_num_seqs=8,
    )
    engine = fake_engine(**options, drafters=[drafter])
    assert answered(engine, mixed(temperature), drafter) == plain
    found = answered(engine, mixed(temperature), drafter, aborted="3")  # from the prefix cache
    assert all(found[key] == tokens for key, tokens in plain.items() if key[0] != "3")
    assert drafter.kv.num_used_blocks == 0
    assert sum(len(batch) for batch in head.batches) > 50


def test_with_a_grammar(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_as_pays(monkeypatch)
    params = SamplingParams(temperature=0.7, max_tokens=40, seed=2)
    grammar = GrammarSource("regex", "([a-z]{1,6} ){3,9}[0-9]+[.]")
    plain = headed_llm(model, speculation=("off",))
    assert generated(headed_llm(model), params, grammar=grammar) == generated(plain, params, grammar=grammar)


@pytest.mark.parametrize("waiting", [4, 256])  # 4: waiting hidden states are computed, or skipped, all the time
def test_all_drafters_together(waiting: int, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtp, "FEWEST_WAITING", waiting)
    monkeypatch.setattr(mtp, "MOST_WAITING", waiting)
    params = SamplingParams(temperature=0.7, max_tokens=50, seed=5, n=3, ignore_eos=True)
    plain = headed_llm(model, speculation=("off",))
    drafted = headed_llm(model, speculation=("auto",))
    assert drafted.loaded.draft is not None
    assert generated(drafted, params) == generated(plain, params)


def test_what_the_prefix_cache_has_the_head_has_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_as_pays(monkeypatch)
    recorded = Recorded(monkeypatch)
    llm = headed_llm(model)
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    drafts = []
    for _ in range(2):
        recorded.drafts.clear()
        llm.generate([PROMPTS[3]], params)
        drafts.append(list(recorded.drafts))
    assert drafts[0] == drafts[1]


def test_a_head_that_is_right_saves_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next token follows from the last alone, and the head knows how: layers add nothing to what they read."""
    check_as_pays(monkeypatch)
    spec = with_head("glm4moe")
    folder = write_safetensors(tmp_path / "model", spec)
    held = {name: np.array(values) for name, values in weights(spec).items()}
    vocab, hidden = held["model.embed_tokens.weight"].shape
    rng = np.random.default_rng(7)
    for name, values in held.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values[:] = 0
        elif name.endswith("norm.weight"):
            values[:] = 1
    held["model.embed_tokens.weight"] = rng.standard_normal((vocab, hidden)).astype(np.float32)
    held["lm_head.weight"] = held["model.embed_tokens.weight"][rng.permutation(vocab)]
    held[f"model.layers.{spec.config['num_hidden_layers']}.eh_proj.weight"] = np.eye(
        hidden, 2 * hidden, dtype=np.float32
    )
    save_file(held, folder / "model.safetensors")
    loaded = load_engine(EngineSettings(model=str(folder), backend="cpu", speculation=("mtp",), **SETTINGS))
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    loaded.core.add(Request("r", (5, 9, 20, 11), params, 0.0))
    steps = drafted = accepted = 0
    while loaded.core.has_work:
        steps += 1
        for count in loaded.core.step().drafts.values():
            drafted += count.num_draft_tokens
            accepted += sum(count.accepted_per_position)
    loaded.close()
    assert accepted == drafted > 50
    assert steps < 10


def test_the_head_is_named_or_goes_without_saying() -> None:
    settings = EngineSettings(model="m")
    assert wants_head(settings)
    assert not wants_head(replace(settings, draft_model="d"))
    assert wants_head(replace(settings, speculation=("ngram", "mtp")))
    assert not wants_head(replace(settings, speculation=("off",)))
    with pytest.raises(ConfigError, match="draft and mtp"):
        check_speculation(replace(settings, speculation=("draft", "mtp"), draft_model="d"))


def test_settings_that_speak_of_a_head_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_safetensors(tmp_path / "model", TINY["glm4moe"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    with caplog.at_level(logging.INFO):
        llm = headed_llm(folder, speculation=("auto",))
    assert "the files hold none of its tensors" in caplog.text
    assert generated(llm, params) == generated(headed_llm(folder, speculation=("off",)), params)
    with pytest.raises(ConfigError, match=r"--speculation mtp: .*none of its tensors"):
        headed_llm(folder)


def test_a_model_without_a_head(tmp_path: Path) -> None:
    folder = write_safetensors(tmp_path / "model", TINY["llama"])
    assert headed_llm(folder, speculation=("auto",)).loaded.draft is None
    with pytest.raises(ConfigError, match="the model has no layer that predicts several tokens"):
        headed_llm(folder)


def test_where_only_the_cpu_computes_heads(model: Path) -> None:
    pytest.importorskip("torch")
    assert headed_llm(model, backend="torch-cpu", speculation=("auto",)).loaded.draft is None
    with pytest.raises(ConfigError, match="on CPUs alone"):
        headed_llm(model, backend="torch-cpu")


def test_the_head_gives_way_where_memory_is_short(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EngineSettings(model=str(model), backend="cpu", max_context=128, memory_utilization=1.0)
    alone = load_engine(replace(settings, speculation=("off",)))
    needed = alone.model.weight_bytes + alone.model.buffer_bytes + 8 * alone.model.block_bytes(0)
    alone.close()
    monkeypatch.setattr("pagoda.engine.load.available_memory", lambda: needed)
    with caplog.at_level(logging.INFO):
        loaded = load_engine(settings)
    assert loaded.draft is None
    assert "without the model's own head" in caplog.text
    loaded.close()
    with pytest.raises(CapacityError):
        load_engine(replace(settings, speculation=("mtp",)))


def test_memory_counts_what_the_head_adds(model: Path) -> None:
    settings = EngineSettings(model=str(model), backend="cpu", **SETTINGS)
    alone, both = load_engine(replace(settings, speculation=("off",))), load_engine(settings)
    assert both.draft is not None
    assert both.draft.drafts is MtpDrafter
    head = both.draft.footprint
    whole = both.kv_plan.footprint.together
    assert whole.weight_bytes == alone.model.weight_bytes + head.weight_bytes
    assert head.weight_bytes < alone.model.weight_bytes / 2  # embedding and output are the model's
    assert "MTP head" in str(both.kv_plan)
    assert both.kv_plan.draft_blocks
    alone.close()
    both.close()
