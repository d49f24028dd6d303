"""The command line as a user types it, with the default model."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pagoda
from serving import HANG_S, process, wait_for

SMALL = ("--max-context", "512", "--max-num-seqs", "8")


@pytest.fixture(scope="module")
def environ(default_model: Path) -> dict[str, str]:
    """The default model comes from the environment: PAGODA_MODEL."""
    source = str(Path(pagoda.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": source, "PAGODA_MODEL": str(default_model)}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pagoda", *args]


def run(environ: dict[str, str], *args: str, given: str = "") -> str:
    """Standard output of the command, which must succeed."""
    done = subprocess.run(
        command(*args), input=given, capture_output=True, text=True, env=environ, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_generate(environ: dict[str, str], tmp_path: Path) -> None:
    greedy = {"max_tokens": 8, "temperature": 0}
    question = [{"role": "user", "content": "What is the capital of France?"}]
    source = write(
        tmp_path / "in",
        {"id": "a", "prompt": "The capital of France is", **greedy},
        {"id": "b", "messages": question, **greedy},
        {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": question, **greedy}},
    )
    run(environ, "generate", str(source), "-o", str(tmp_path / "out"), "--ordered", *SMALL)
    a, b, c = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert a["text"].startswith(" Paris")
    assert a["usage"]["completion_tokens"] <= 8
    assert b["usage"]["completion_tokens"] <= 8
    assert c["response"]["body"]["choices"][0]["message"]["content"] == b["text"]


def test_generate_killed_in_the_middle_goes_on_to_the_same_answers(environ: dict[str, str], tmp_path: Path) -> None:
    source = write(tmp_path / "in", *({"id": i, "prompt": f"{i} and", "max_tokens": 12} for i in range(16)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(environ, "generate", str(source), "-o", str(whole), *SMALL)
    process = subprocess.Popen(
        command("generate", str(source), "-o", str(broken), *SMALL), env=environ, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: broken.exists() and broken.stat().st_size)
    process.kill()
    process.wait()
    left = broken.read_bytes()
    assert 0 < left.count(b"\n") < 16
    broken.write_bytes(left + b'{"id": 15, "te')
    run(environ, "generate", str(source), "-o", str(broken), *SMALL)
    assert broken.read_bytes().startswith(left)
    first, second = ({r["id"]: r["text"] for r in map(json.loads, p.read_text().splitlines())} for p in (whole, broken))
    assert first == second
    assert len(first) == 16


def talk(environ: dict[str, str], *flags: str) -> str:
    """What the model says about French cooking."""
    lines = "Name a French cheese.\n/reset\n/quit\n"
    output = run(environ, "chat", "--temperature", "0", "--max-tokens", "12", *flags, given=lines)
    _, answer, speed, reset = output.splitlines()
    assert "tokens/s, first after" in speed
    assert reset == "a new conversation"
    return answer


def test_chat(environ: dict[str, str]) -> None:
    assert len(talk(environ, *SMALL)) > 10


def test_bench(environ: dict[str, str]) -> None:
    flags = "bench --prompt 32 --gen 8 --batch 1,4 --runs 2 --warmup 0 --profile --json"
    report = json.loads(run(environ, *flags.split()))
    one, four = report["results"]
    assert (one["batch"], four["batch"]) == (1, 4)
    for result in (one, four):
        assert len(result["runs"]) == 2
        assert result["prefill_tok_s"] > 0
        for each in result["runs"]:  # not of the medians: those of times and of rates may be of different runs
            assert each["tpot_ms"] == pytest.approx(1000 * result["batch"] / each["decode_tok_s"], rel=0.01)
    assert report["memory"]["weights"] > 80e6
    assert report["peak_memory_bytes"] > report["memory"]["weights"]
    assert report["machine"]["threads"] >= 1
    ops = {row["op"] for row in report["profile"][0]["decode"]}
    assert {"attention", "sampling"} <= ops
    assert sum(row["time_share"] for row in report["profile"][0]["prefill"]) == pytest.approx(1, abs=0.01)


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one, which ends well when it is asked to."""
    with process(default_model, tmp_path_factory.mktemp("server") / "log", *SMALL) as server:
        wait_for(lambda: server.client.get("/ready").is_success)
        yield str(server.client.base_url).rstrip("/")
        server.popen.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0


def test_bench_serve(environ: dict[str, str], server: str) -> None:
    flags = ("--concurrency", "4", "--prompt", "16", "--output", "8", "--requests", "12")
    slo = ("--slo-ttft", "60000", "--slo-tpot", "60000")
    report = json.loads(run(environ, "bench", "serve", "--url", server, "--expect", server, *flags, *slo, "--json"))
    assert (report["completed"], report["errors"]) == (12, {})
    assert (report["prompt_tokens"], report["output_tokens"]) == (12 * 16, 12 * 8)
    assert report["expect"] == {"url": server, "compared": 12, "equal": 12, "different": []}
    assert report["goodput_request_s"] == report["request_s"] > 0
    assert 0 < report["ttft_ms"]["p50"] <= report["e2e_ms"]["p50"] <= report["e2e_ms"]["p99"]


def test_chat_and_generate_with_a_server(environ: dict[str, str], server: str, tmp_path: Path) -> None:
    assert talk(environ, "--url", server) == talk(environ, *SMALL)
    source = write(tmp_path / "in", {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0})
    run(environ, "generate", str(source), "-o", str(tmp_path / "out"), "--url", server)
    assert json.loads((tmp_path / "out").read_text())["text"].startswith(" Paris")


def test_errors_are_one_line(environ: dict[str, str], tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF\x03\x00\x00\x00")
    for args, code in (
        (("bench", str(torn)), 1),
        (("chat", "no-such-model"), 1),
        (("chat", "--threads", "many"), 2),
        (("chat", "--isa", "neon" if sys.platform != "darwin" else "avx2"), 2),
        (("generate", "missing", "-o", str(tmp_path / "x")), 2),
    ):
        done = subprocess.run(command(*args), capture_output=True, text=True, env=environ, timeout=HANG_S, check=False)
        assert done.returncode == code, (args, done.stderr)
        assert done.stderr.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr
