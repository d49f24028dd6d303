"""`pagoda gateway` as a process: what it is told, how it starts, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateways import Scripted, respond, whole
from pagoda.cli.main import app
from serving import HANG_S, wait_for


def started(folder: Path, *flags: str, **environ: str) -> tuple[subprocess.Popen[bytes], Path]:
    log = folder / "log"
    command = [sys.executable, "-m", "pagoda", "gateway", "--port", "0", "--log-format", "json", *flags]
    with log.open("wb") as stderr:
        return subprocess.Popen(command, stderr=stderr, env=os.environ | environ), log


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def test_flags_that_a_gateway_does_not_read_are_no_flags_of_it() -> None:
    text = CliRunner().invoke(app, ["gateway", "--help"]).output
    for flag in ("--upstream", "--max-queue-requests", "--token-price"):
        assert f"  {flag} " in text
    for flag in ("--price", "--models-max", "--tool-call-format", "--served-model-name"):
        assert f"  {flag} " not in text
    assert "No such option: --models-max" in CliRunner().invoke(app, ["gateway", "--models-max", "2"]).output


def test_start_answer_end(tmp_path: Path) -> None:
    upstream = Scripted(lambda sock, body: respond(sock, whole()))
    rows = f'[[upstreams]]\nurl = "{upstream.url}"\nname = "u"\nkey-env = "U_KEY"\n[cost]\ntoken-price = ["*=1/2"]\n'
    config = tmp_path / "pagoda.toml"
    config.write_text(rows)
    popen, log = started(tmp_path, "--config", str(config), U_KEY="sk-u")
    try:
        wait_for(lambda: any(line["message"] == "listening" for line in lines(log)) or popen.poll() is not None)
        (listening,) = [line for line in lines(log) if line["message"] == "listening"]
        with httpx.Client(base_url=listening["url"], timeout=HANG_S) as client:
            wait_for(lambda: client.get("/models").status_code == 200)
            asked = {"messages": [{"role": "user", "content": "Hi"}]}
            answer = client.post("/chat/completions", json=asked)
        assert (answer.status_code, answer.headers["x-pagoda-upstream"]) == (200, "u")
        assert float(answer.headers["x-cost-usd"]) == pytest.approx(14e-6)
        assert "Authorization: Bearer sk-u" in upstream.heads[0]
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(HANG_S) == 0
    finally:
        popen.kill()
        popen.wait()
    (request,) = [line for line in lines(log) if line["message"] == "request" and line["path"].endswith("completions")]
    assert (request["status"], request["completion_tokens"], request["finish"]) == (200, 2, "stop")
    assert "sk-u" not in log.read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "no upstream: say which server to stand before"),
        (("--upstream", "ftp://x"), "is not the address of a server"),
        (("http://x", "--upstream", "http://x"), "two upstreams are called 'x'"),
        (("--upstream", "http://x", "--token-price", "x"), "is not MODEL=PROMPT/ANSWER"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    popen, log = started(tmp_path, *flags)
    assert popen.wait(HANG_S) != 0
    assert said in log.read_text()
    assert "Traceback" not in log.read_text()
