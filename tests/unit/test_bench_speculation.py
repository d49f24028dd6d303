"""Pairs of runs with and without speculation: what they send, what they compare, what they report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_backend import fake_engine
from pagoda.benchmark.speculation import Prompt, SpeculationBench, measure, report
from pagoda.cli.bench_speculation import read_prompts
from pagoda.cli.main import app
from pagoda.engine.speculation.ngram import NgramDrafter
from pagoda.engine.speculation.prediction import PredictionDrafter
from pagoda.errors import ConfigError
from pagoda.types import SamplingParams
from tiny_models import TINY, write_gguf

PARAMS = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)


def test_pairs_are_the_same_prompts_both_ways() -> None:
    engine = fake_engine(drafters=[PredictionDrafter(), NgramDrafter()])
    bench = SpeculationBench(engine, PARAMS)
    prompts = [Prompt("a", (5, 9, 20)), Prompt("b", (7, 7, 3)), Prompt("c", (1, 2, 3))]
    right = bench.pair(prompts[:1], on_first=True).off.tokens
    prompts[0] = Prompt("a", (5, 9, 20), tuple(next(iter(right.values()))))
    pairs = measure(bench, prompts, concurrency=2, rounds=2)
    assert [pair.names for pair in pairs] == [("a", "b"), ("c",)] * 2
    assert all(pair.equal for pair in pairs)
    assert all(not pair.off.drafted for pair in pairs)
    assert pairs[0].on.kept["prediction"] >= 12
    found = report(pairs)
    assert found["drafters"]["prediction"]["kept"] >= 24
    assert found["different"] == []
    assert [pair["tokens"] for pair in found["pairs"]] == [32, 16, 32, 16]
    assert pairs[0].on.num_steps == pairs[0].off.num_steps == 16  # b was not predicted


def test_gains_are_medians_of_pairs_and_the_whole() -> None:
    pairs = measure(SpeculationBench(fake_engine(), PARAMS), [Prompt("a", (5, 9))], concurrency=1, rounds=3)
    for pair, (off, on) in zip(pairs, [(1.0, 0.5), (1.0, 1.0), (4.0, 1.0)], strict=True):
        pair.off.seconds, pair.on.seconds = off, on
    found = report(pairs)
    assert (found["gain"], found["total_gain"]) == (2.0, 2.4)
    next(iter(pairs[0].on.tokens.values()))[0] += 1
    assert report(pairs)["different"] == [["a"]]


def test_files_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"name": "x", "prompt": "hello"}\n\n{"messages": []}\n')
    assert [line.get("name") for line in read_prompts(path)] == ["x", None]
    for text, says in (("", "no prompt"), ("{}\n", "line 1 must hold either"), ("[1", "p.jsonl")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_prompts(path)


def test_the_verb(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf", TINY["llama"])
    lines = [{"name": "one", "prompt": "abcabcabcabc"}, {"name": "two", "prompt": "xyz", "prediction": "xyz"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["bench", "speculation", str(model), "--prompts", str(tmp_path / "p.jsonl"), "--output", "12"]
    command += ["--device", "cpu", "--kv-memory", "4MiB", "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [pair["names"] for pair in found["pairs"]] == [["one"], ["two"]]
    assert found["different"] == []
    assert found["gain"] > 0
