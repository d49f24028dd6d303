"""The same conversation through every door to the default model: the same prompt, at temperature 0 the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from door_table import ALL, Door, doors
from serving import process

NAMES = sorted(doors("", "", ""))


@pytest.fixture(scope="module")
def client(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("doors") / "log"
    with process(default_model, log, "--served-model-name", "m", "--max-num-seqs", "2") as server:
        yield server.client


@pytest.fixture(scope="module")
def table(client: httpx.Client) -> dict[str, Door]:
    rendered = client.post("/apply-template", json={"messages": ALL}).json()["prompt"]
    ids = client.post("/tokenize", json={"messages": ALL}).json()["tokens"]
    return doors("m", rendered, ids)


def num_prompt_tokens(answer: dict[str, object]) -> object:
    """Where each protocol says how long the prompt was."""
    usage = answer.get("usage", answer)
    assert isinstance(usage, dict)
    cached = usage.get("cache_read_input_tokens", 0)
    names = ("prompt_tokens", "tokens_evaluated", "prompt_eval_count")
    found = next((usage[name] for name in names if name in usage), None)
    return usage["input_tokens"] + cached if found is None else found


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_same(name: str, client: httpx.Client, table: dict[str, Door]) -> None:
    reference = client.post(table["chat"].path, json=table["chat"].asking(24, stream=False)).json()
    door = table[name]
    whole = client.post(door.path, json=door.asking(24, stream=False)).json()
    streamed = door.parse(client.post(door.path, json=door.asking(24, stream=True)))
    text = table["chat"].whole(reference)
    assert len(text) > 20
    assert door.whole(whole) == "".join(map(door.piece, streamed)) == text
    assert num_prompt_tokens(whole) == reference["usage"]["prompt_tokens"]
