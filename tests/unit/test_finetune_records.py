"""Lines of training data: the shapes that are read, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pagoda.errors import FormatError, UnsupportedError
from pagoda.finetune.data.records import Source, read_records

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def read(tmp_path: Path, *lines: Any) -> Source:
    return read_records(write(tmp_path, *lines))


def test_every_shape(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    chat, pair, text, talk = read(
        tmp_path,
        {"messages": CHAT, "tools": [tool], "parallel_tool_calls": False},
        {"prompt": "2 + 2 =", "completion": " 4"},
        "",
        {"text": "All of it."},
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": "Bye"}]},
    ).records
    assert chat.messages == tuple(CHAT)
    assert chat.tools == (tool,)
    assert (pair.prompt, pair.trained) == ("2 + 2 =", " 4")
    assert (text.prompt, text.trained) == ("", "All of it.")
    assert text.where.endswith("data.jsonl:4")  # empty lines count
    assert [message.get("weight", 1) for message in talk.messages] == [0, 0, 1]


def test_a_text_file_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("Call me\nIshmael.")
    assert [record.trained for record in read_records(path).records] == ["Call me\nIshmael."]


def test_keys_without_meaning_are_counted(tmp_path: Path) -> None:
    source = read(tmp_path, {"text": "a", "id": 1}, {"text": "b", "id": 2, "lang": "en"})
    assert source.ignored_keys == {"id": 2, "lang": 1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{'messages': []}", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ([1], "line 2 is an array, must be an object"),
        ({}, "data.jsonl:2: a record has one of"),
        ({"messages": CHAT, "text": "x"}, "one of 'messages', 'prompt' with 'completion', or 'text'"),
        ({"prompt": "x"}, "'completion' is missing"),
        ({"prompt": "x", "completion": 3}, "'completion' must be a string"),
        ({"messages": []}, "messages must be a list of at least one"),
        ({"messages": CHAT[:1]}, "no message is the assistant's"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\]: role is 'bot'"),
        ({"messages": [*CHAT, {"role": "user"}]}, r"messages\[2\]: content is missing"),
        ({"messages": [{"role": "assistant", "content": 5}]}, "content must be text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "tool_calls must be"),
        ({"messages": [CHAT[0], CHAT[1] | {"weight": 0.5}]}, "weight is 0.5, must be 0 or 1"),
        ({"messages": CHAT, "tools": {}}, "tools must be a list"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: Any, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        read(tmp_path, {"text": "right"}, line)


@pytest.mark.parametrize("key", ["preferred_output", "chosen", "functions"])
def test_other_formats_are_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsupportedError, match=key):
        read(tmp_path, {"messages": CHAT, key: []})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_records(tmp_path / "nonesuch.jsonl")
    with pytest.raises(FormatError, match="holds no records"):
        read(tmp_path, "", "  ")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xe9"}')
    with pytest.raises(FormatError, match="line 2 is not UTF-8"):
        read_records(path)
    with pytest.raises(FormatError, match="must stand on one line"):
        read(tmp_path, "[", '{"text": "a"}', "]")
