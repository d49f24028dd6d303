"""Drafts of test cases: how documents are cut, and which drafts are kept."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pagoda.errors import SourceError
from pagoda.evals.drafts import Draft, draft_cases, read_passages, split_passages
from pagoda.evals.judge import Judge

PARAGRAPH = "Pagodas have several roofs. " * 10  # 280 characters


def test_passages_are_whole_paragraphs() -> None:
    text = "\n\n".join([PARAGRAPH.strip()] * 7)
    found = list(split_passages(text))
    assert [passage.count("\n\n") + 1 for passage in found] == [3, 3, 1]
    assert list(split_passages("# Heading\n\nshort")) == []


def test_a_folder_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 1000)
    with pytest.raises(SourceError, match="holds no text"):
        read_passages(tmp_path)
    (tmp_path / "a.md").write_text(PARAGRAPH)
    assert read_passages(tmp_path) == [PARAGRAPH.strip()]


class Writer:
    """A server whose model drafts a question and finds answers with 'roofs' supported."""

    def __init__(self, drafts: list[str]) -> None:
        self.drafts = drafts

    async def post(self, path: str, body: bytes) -> bytes:
        asked: dict[str, Any] = json.loads(body)
        if "response_format" in asked:
            message = {"content": self.drafts.pop(0) if self.drafts else "no more"}
            return json.dumps({"choices": [{"message": message}]}).encode()
        text = asked["messages"][0]["content"]
        yes = 0.9 if "Answer: roofs" in text and "no passages" not in text else 0.1
        top = [{"token": "yes", "logprob": math.log(yes)}, {"token": "no", "logprob": math.log(1 - yes)}]
        return json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}).encode()

    def events(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        raise NotImplementedError

    def close(self) -> None: ...


def drafted(texts: list[str], count: int) -> list[Draft]:
    async def all_of_them() -> list[Draft]:
        judge = Judge(lambda: Writer(texts), None, concurrency=1)
        return [draft async for draft in draft_cases(judge, [PARAGRAPH], count)]

    return asyncio.run(all_of_them())


def test_only_drafts_that_the_passage_supports_are_kept() -> None:
    good = '{"question": "What do pagodas have?", "answer": "roofs"}'
    made_up = '{"question": "Who built it?", "answer": "Napoleon"}'
    no_question = '{"question": "Pagodas", "answer": "roofs"}'
    found = drafted([made_up, no_question, good, good, "not JSON"], 3)
    assert [(draft.kind, draft.question) for draft in found] == [("two passages", "What do pagodas have?")]
    line = found[0].as_line(1)
    assert line["reference"] == "roofs"
    assert line["reviewed"] is False


def test_an_unanswerable_draft_must_not_be_supported() -> None:
    asks = [f'{{"question": "Q{i}?", "answer": "Napoleon"}}' for i in range(5)]
    (found,) = drafted(asks, 1)
    assert found.kind == "unanswerable"
    assert found.as_line(1)["reference_contexts"] == []
