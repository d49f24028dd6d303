"""Clients that people use, as they come from the package index, against the real server with Qwen2.5-Coder 0.5B.

They stand in an environment of their own, `.venv-clients`, that `make test` makes (`requirements.txt`): several want
versions that others exclude. `client_*.py` run in there and say what became of each case (`cases.py`).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagoda.errors import SourceError
from pagoda.sources import resolve
from serving import process

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-clients"
MODEL = "qwen2.5-coder-0.5b"
KEY = "sk-test"
WITHOUT_STREAMED_TOOLS = ("chat", "stream", "tools", "structured", "refusal")
CASES = (*WITHOUT_STREAMED_TOOLS, "streamed_tools")
RESPONSES = (*CASES, "previous")
CHAT = ("chat", "stream")

# name → script, its cases, and the folder with another version of openai than the environment's 3.x
CLIENTS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "openai-3": ("client_openai.py", CASES, None),
    "openai-1": ("client_openai.py", CASES, "openai-1"),
    "openai-3 responses": ("client_openai_responses.py", RESPONSES, None),
    "openai-1 responses": ("client_openai_responses.py", RESPONSES, "openai-1"),
    "anthropic": ("client_anthropic.py", (*CHAT, "tools", "streamed_tools", "count_tokens", "refusal"), None),
    "ollama": ("client_ollama.py", (*CHAT, "generate", "tools", "structured", "models", "refusal"), None),
    "litellm": ("client_litellm.py", CASES, None),
    "langchain-openai": ("client_langchain.py", CASES, None),
    "llama-index": ("client_llama_index.py", WITHOUT_STREAMED_TOOLS, "openai-2"),
    "instructor": ("client_instructor.py", WITHOUT_STREAMED_TOOLS, None),
    "pydantic-ai": ("client_pydantic_ai.py", WITHOUT_STREAMED_TOOLS, None),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server's address for clients."""
    if not (ENVIRONMENT / "complete").exists():
        pytest.skip("the clients are not installed: make .venv-clients/complete")
    try:
        model = resolve(MODEL).path
    except SourceError as error:
        pytest.skip(f"{MODEL} cannot be had: {error}")
    log = tmp_path_factory.mktemp("clients") / "server.log"
    flags = ("--max-context", "2048", "--max-num-seqs", "4", "--served-model-name", MODEL, "--api-key", KEY)
    with process(model, log, *flags) as running:
        yield f"{running.client.base_url}/v1"


@functools.cache
def outcomes(client: str, url: str) -> dict[str, str]:
    """What became of each case of a client: "" where it went well."""
    script, _, other_openai = CLIENTS[client]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if other_openai is not None:
        environment["PYTHONPATH"] = str(ENVIRONMENT / other_openai)
    command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / script), url, KEY, MODEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    lines = [json.loads(line.removeprefix("case ")) for line in done.stdout.splitlines() if line.startswith("case {")]
    assert lines, done.stdout + done.stderr
    return {line["name"]: line["error"] for line in lines}


@pytest.mark.parametrize(("client", "case"), [(name, case) for name, row in CLIENTS.items() for case in row[1]])
def test_client(client: str, case: str, url: str) -> None:
    error = outcomes(client, url)[case]
    assert not error, error
