"""`pagoda cache`: looking into a store, and measuring a verifier, with embeddings that need no model."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cache_parts import WordEmbedder, entry
from pagoda.cache.stores.sqlite import SqliteStore
from pagoda.cli.main import app

runner = CliRunner()
SUBJECTS = ("rust", "gold", "iron", "tin", "zinc")


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.server.cache_parts.load_embedder", lambda *a, **k: WordEmbedder())
    monkeypatch.setattr("pagoda.cli.cache_verifier.load_embedder", lambda *a, **k: WordEmbedder())


@pytest.fixture
def store(tmp_path: Path) -> list[str]:
    """Flags that name a store of two entries."""
    path = tmp_path / "a.sqlite"
    kept, now = SqliteStore(path), time.time()
    for question, tags in (("What is rust?", ("docs",)), ("Who wrote Faust?", ())):
        (vector,) = WordEmbedder().embed([question])
        one = entry(question, "An answer.", vector=vector, space="words", created=now, tags=tags)
        kept.put(replace(one, model="m1" if tags else "m2"))
    kept.close()
    return ["--cache", f"sqlite:{path}"]


def run(*args: str) -> Any:
    return runner.invoke(app, ["cache", *args] if args[0] else ["cache"])


def test_overview_lists_the_verbs() -> None:
    result = runner.invoke(app, ["cache"])
    assert all(f"pagoda cache {verb}" in result.output for verb in ("stats", "search", "train", "evaluate"))


def test_stats_search_show_and_delete(store: list[str]) -> None:
    stats = json.loads(run("stats", "--json", *store).output)
    assert (stats["entries"], stats["expired"], stats["tokens"], stats["models"]) == (2, 0, 6, {"m1": 1, "m2": 1})
    first = run("search", "is rust what", *store).output.splitlines()[0].split()
    assert first[0] == "1.000"
    shown = json.loads(run("show", first[1], *store).output)
    assert (shown["question"], shown["answer"], shown["tags"]) == ("What is rust?", "An answer.", ["docs"])
    assert run("delete", "--tag", "docs", *store).output == "1 entry removed\n"
    assert run("delete", *store).exit_code != 0
    assert run("delete", "--older-than", "3600", *store).output == "0 entries removed\n"
    assert run("delete", "--all", *store).output == "1 entry removed\n"
    assert "there is no entry" in str(run("show", first[1], *store).exception)


def write_pairs(path: Path) -> None:
    """900 pairs; those of one subject are the same."""
    lines = []
    for number in range(900):
        a, b = SUBJECTS[number % 5], SUBJECTS[number // 5 % 5]
        pair = {"a": f"How is {a} made {number}?", "b": f"How do they make {b}?", "same": int(a == b)}
        lines.append(json.dumps(pair if number % 3 else pair | {"b": f"How is {a} made?", "same": 1}))
    path.write_text("\n".join(lines))


def test_train_and_evaluate(tmp_path: Path) -> None:
    pairs, verifier, picture = tmp_path / "p.jsonl", tmp_path / "v.json", tmp_path / "curve.svg"
    write_pairs(pairs)
    assert run("train", str(pairs), "-o", str(verifier)).exit_code == 0
    result = run("evaluate", str(pairs), "--verifier", str(verifier), "--plot", str(picture), "--json")
    shape = json.loads(result.output)
    assert shape["pairs"] == 900
    assert shape["found"]["verifier"]["0.05"] > 0.9
    assert set(shape["found"]["cosine"]) == {"0.02", "0.05", "0.1", "0.2"}
    assert picture.read_text().count("<polyline") == 2
    assert "20%" in run("evaluate", str(pairs), "--verifier", str(verifier)).output
    assert "another embedder" in str(run("evaluate", str(pairs)).exception)


def test_evaluate_replays_a_log(tmp_path: Path) -> None:
    """Questions of one subject get one answer; every third is a repeat of the first of its subject in other clothes."""
    lines = []
    for number in range(900):
        subject = SUBJECTS[number % 5]
        question = f"how is {subject} MADE" if number % 3 == 0 else f"How do they make {subject} {number}?"
        lines.append({"question": question, "answer": f"Out of {subject}.", "partition": "p"})
    lines.append({"question": "Where is my order?", "answer": "Here."})
    pairs, log, verifier, picture = (tmp_path / name for name in ("p.jsonl", "log.jsonl", "v.json", "curve.svg"))
    write_pairs(pairs)
    log.write_text("\n".join(map(json.dumps, lines)))
    assert run("train", str(pairs), "-o", str(verifier)).exit_code == 0
    options = ("--verifier", str(verifier), "--plot", str(picture))
    shape = json.loads(run("evaluate", str(log), *options, "--json").output)
    assert (shape["questions"], shape["bypassed"], shape["same_words"]) == (901, 1, 295)
    assert shape["repeats"] > 500
    assert set(shape["max_wrong"]) == {"0.01", "0.02", "0.05", "0.1"}
    strict, loose = shape["max_wrong"]["0.01"], shape["max_wrong"]["0.1"]
    assert 295 <= strict["hits"] <= loose["hits"]
    assert strict["wrong"] <= 0.01 * strict["hits"]
    assert picture.read_text().count("<polyline") == 2
    shown = run("evaluate", str(log), *options).output
    assert "901 questions, 295 of them repeats of the same words" in shown
    assert "--cache-max-wrong" in shown
