"""`pagoda serve` as a process of its own, with the real default model: how it starts, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from serving import HANG_S, process, series_sums, wait_for

ASK = {"prompt": "Once upon a time", "max_tokens": 100, "ignore_eos": True, "stream": True, "temperature": 0}


def test_start_answer_end(default_model: Path, tmp_path: Path) -> None:
    with process(default_model, tmp_path / "log") as server:
        assert server.client.get("/ready").status_code == 200
        headers = {"X-Request-Id": "trace-1"}
        answer = server.client.post("/v1/completions", json=ASK | {"stream": False, "max_tokens": 4}, headers=headers)
        assert answer.json()["usage"]["completion_tokens"] == 4
        server.popen.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
        lines = server.lines()
    (request,) = [line for line in lines if line["message"] == "request" and line["path"] == "/v1/completions"]
    assert (request["request_id"], request["status"], request["completion_tokens"]) == ("trace-1", 200, 4)
    assert any("sequences of 1024 tokens" in str(line["message"]) for line in lines), "the memory sum"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish(default_model: Path, tmp_path: Path, sig: signal.Signals) -> None:
    with process(default_model, tmp_path / "log", "--shutdown-timeout", "120") as server:
        with server.client.stream("POST", "/v1/completions", json=ASK) as response:
            lines = response.iter_lines()
            next(lines)
            server.popen.send_signal(sig)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.wait_end() == 0


def test_a_second_signal_stops_at_once(default_model: Path, tmp_path: Path) -> None:
    with process(default_model, tmp_path / "log", "--shutdown-timeout", "120") as server:
        with server.client.stream("POST", "/v1/completions", json=ASK) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.popen.send_signal(signal.SIGTERM)
            wait_for(lambda: "shutting down; a second Ctrl-C stops at once" in server.log.read_text())
            server.popen.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert server.wait_end() == 128 + signal.SIGTERM


def test_a_killed_server_finds_its_prefixes_again(default_model: Path, tmp_path: Path) -> None:
    ask = ASK | {"prompt": "A lighthouse keeper counts ships. " * 40, "max_tokens": 8, "stream": False}
    flags = ("--kv-offload", f"{tmp_path / 'kv'}:1GB")
    with process(default_model, tmp_path / "first", *flags) as server:
        first = server.client.post("/v1/completions", json=ask).json()
        num_blocks = first["usage"]["prompt_tokens"] // 16
        wait_for(lambda: len(list((tmp_path / "kv").glob("*/??/*-0"))) >= num_blocks)
        server.popen.kill()
        server.wait_end()
    with process(default_model, tmp_path / "second", *flags) as server:
        again = server.client.post("/v1/completions", json=ask).json()
        metrics = server.client.get("/metrics").text
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, again)]
    assert cached == [0, (first["usage"]["prompt_tokens"] - 1) // 16 * 16]
    assert series_sums(metrics, event="read")["pagoda_kv_offload_blocks_total"] == cached[1] / 16


def test_a_busy_port_ends_with_a_sentence(default_model: Path, tmp_path: Path) -> None:
    with process(default_model, tmp_path / "log") as server:
        port = str(server.client.base_url.port)
        second = subprocess.run(
            [sys.executable, "-m", "pagoda", "serve", str(default_model), "--port", port],
            capture_output=True,
            timeout=HANG_S,
        )
    assert second.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in second.stderr.decode()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pagoda", "serve", str(tmp_path / "no.gguf"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, timeout=HANG_S)
    assert done.returncode == 1
    assert "no.gguf" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize("change", ["overwritten", "cut short"])
def test_a_model_file_that_changes_ends_the_server_with_a_word(
    default_model: Path, tmp_path: Path, change: str
) -> None:
    model = tmp_path / "model.gguf"
    shutil.copyfile(default_model, model)
    with process(model, tmp_path / "log") as server:
        assert server.client.post("/v1/completions", json=ASK | {"stream": False, "max_tokens": 4}).status_code == 200
        if change == "cut short":
            os.truncate(model, 2**20)  # the embedding table, which is read from the file, is gone
        else:
            with model.open("r+b") as file:
                file.seek(2**20)
                file.write(b"\xff" * 2**20)
        # words that have not been read before; whoever asks first notices
        answer = server.client.post("/v1/completions", json=ASK | {"prompt": "zebra quartz", "stream": False})
        assert answer.status_code == 503, answer.text
        wait_for(lambda: server.client.get("/ready").status_code == 503)
        assert server.wait_end() == 1
        assert "start the server again" in server.log.read_text()
