"""The example application: its gate lets it pass as it is, and stops what makes it worse. Every step is a process."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pagoda.sources import resolve

EXAMPLE = Path(__file__).parents[2] / "examples" / "rag"
METRICS = "contains,token_f1,hit_rate"


@pytest.fixture
def example(tmp_path: Path, default_model: Path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "rag", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "rag"


def pagoda(folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pagoda", *args],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def gate(folder: Path, **variables: str) -> tuple[int, str]:
    """Run the example's evaluation and its gate. → (exit status, what the gate says)"""
    asked = ("testset.jsonl", "--target", "app:answer", "--metrics", METRICS, "-o", "current.json")
    done = pagoda(folder, "eval", "run", *asked, **variables)
    assert done.returncode == 0, done.stderr
    judged = pagoda(folder, "eval", "gate", "--baseline", "baseline.json", "--current", "current.json")
    return judged.returncode, judged.stdout + judged.stderr


def test_as_it_is_it_passes(example: Path) -> None:
    status, said = gate(example)
    assert (status, said.splitlines()[-1]) == (0, "gate: pass"), said


def test_a_prompt_that_spoils_answers_is_stopped(example: Path) -> None:
    prompt = example / "other.txt"
    prompt.write_text("Context: {passages}\n\nQuestion: {question}\nAnswer in one friendly sentence in French.\n")
    status, said = gate(example, RAG_PROMPT=str(prompt))
    assert status == 1, said
    assert re.search(r"contains fell by \d+.* fails", said), said
    assert "hit_rate is the same" in said  # retrieval is not to blame


def test_a_poisoned_index_is_stopped(example: Path) -> None:
    """Copies of the documents with other numbers and names rank beside the true ones."""
    for path in (example / "documents").glob("*.md"):
        forged = re.sub(r"\d", lambda digit: str((int(digit.group()) + 3) % 10), path.read_text())
        forged = re.sub(r"\b(two|three|eleven)\b", "seven", forged, flags=re.IGNORECASE)
        (example / "documents" / f"a-{path.name}").write_text(forged)
    status, said = gate(example)
    assert status == 1, said
    assert re.search(r"hit_rate fell by \d+.* fails", said), said


def test_a_quantization_whose_answers_are_worse_is_not_kept(example: Path) -> None:
    """`quantize --gate`, on what the application asks its model."""
    index = runpy.run_path(str(example / "app.py"))["Index"](example / "documents")
    context, question = (example / "prompt.txt").read_text().split("\n\n")
    lines = []
    for case in map(json.loads, (example / "testset.jsonl").read_text().splitlines()):
        passages = "\n".join(index.search(case["question"]))
        given = {
            "contexts": [context.format(passages=passages)],
            "question": question.format(question=case["question"]),
        }
        lines.append(json.dumps(case | given) + "\n")
    (example / "asked.jsonl").write_text("".join(lines))
    asked = ("quantize", "smollm2-135m", "--gate", "asked.jsonl", "--gate-tokens", "40", "--no-verify")
    kept = pagoda(example, *asked, "--to", "q8_0", "-o", "q8_0.gguf")
    assert (kept.returncode, (example / "q8_0.gguf").is_file()) == (0, True), kept.stderr
    refused = pagoda(example, *asked, "--to", "q2_k", "-o", "q2_k.gguf")
    assert (refused.returncode, list(example.glob("q2_k*"))) == (1, []), refused.stderr
    assert re.search(r"contains fell by \d+.* fails", refused.stdout), refused.stdout
    assert "its answers are worse than the original's; nothing was kept" in refused.stderr


def test_a_quantization_that_loses_too_much_is_stopped(example: Path) -> None:
    made = pagoda(example, "quantize", str(resolve("smollm2-135m").path), "--to", "q2_k", "-o", "small.gguf")
    assert made.returncode == 0, made.stderr
    status, said = gate(example, RAG_MODEL=str(example / "small.gguf"))
    assert status == 1, said
    assert re.search(r"contains fell by \d+.* fails", said), said
