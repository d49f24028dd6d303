"""Files of training data, a record a line, in the shapes that the field uses.

    {"messages": [...], "tools": [...]}              OpenAI's chat format; a turn of "weight": 0 is not trained
    {"prompt": "...", "completion": "..."}           text; or lists of messages
    {"text": "..."}                                  plain text, all of which is trained

A .txt or .md file is one plain text. Errors name the file and the line.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagoda.errors import FormatError, UnsupportedError

KEYS = {"messages", "tools", "prompt", "completion", "text"}
HARMLESS = {"parallel_tool_calls"}  # of OpenAI's format; changes nothing of what is trained
NOT_SUPPORTED = {
    "preferred_output": "preference pairs (DPO) are not trained here",
    "chosen": "preference pairs (DPO) are not trained here",
    "functions": 'write "tools", which replaced "functions"',
}
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Record:
    """One line. Either messages or text; of text, what stands before `trained` is not learned."""

    where: str  # file:line, for messages
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt: str = ""
    trained: str | None = None


@dataclass(slots=True)
class Source:
    """A file's records, its digest, and what was found in it that has no meaning here."""

    path: Path
    records: list[Record]
    sha256: str
    ignored_keys: Counter[str] = field(default_factory=Counter)


def read_records(path: Path) -> Source:
    """FormatError for what is no record, naming the line; UnsupportedError for formats that are not trained here."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", path=str(path)) from error
    source = Source(path, [], hashlib.sha256(data).hexdigest())
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FormatError(f"line {line} is not UTF-8", path=str(path), offset=error.start) from error
    if path.suffix in (".txt", ".md"):
        source.records.append(Record(str(path), trained=text))
    else:
        source.records.extend(_lines(text, source))
    if not source.records:
        raise FormatError("holds no records", path=str(path))
    return source


def _lines(text: str, source: Source) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source.path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; a record must stand on one line" if number == 1 and line.strip() in ("[", "{") else ""
            raise FormatError(f"line {number} is not JSON: {error}{hint}", path=str(source.path)) from error
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise FormatError(f"line {number} is {_article(kind)}, must be an object", path=str(source.path))
        yield _record(value, where, source)


def _article(kind: str) -> str:
    return {"list": "an array", "str": "a string", "NoneType": "null"}.get(kind, f"a {kind}")


def _record(value: dict[str, Any], where: str, source: Source) -> Record:
    for key, why in NOT_SUPPORTED.items():
        if key in value:
            raise UnsupportedError(f"{where}: {key!r}: {why}")
    source.ignored_keys.update(value.keys() - KEYS - HARMLESS)
    kinds = [key for key in ("messages", "prompt", "text") if key in value]
    if len(kinds) != 1:
        found = ", ".join(map(repr, value)) or "nothing"
        raise FormatError(
            f"{where}: a record has one of 'messages', 'prompt' with 'completion', or 'text'; has {found}"
        )
    if kinds[0] == "text":
        return Record(where, trained=_text(value, "text", where))
    if kinds[0] == "messages":
        return Record(where, _messages(value["messages"], where), _tools(value.get("tools"), where))
    if "completion" not in value:
        raise FormatError(f"{where}: 'completion' is missing")
    if isinstance(value["prompt"], list):
        return _conversational(value, where)
    return Record(where, prompt=_text(value, "prompt", where), trained=_text(value, "completion", where))


def _conversational(value: dict[str, Any], where: str) -> Record:
    """Prompt and completion as messages: only the completion's are trained."""
    before = tuple({**message, "weight": 0} for message in _messages(value["prompt"], where, needs_answer=False))
    return Record(where, (*before, *_messages(value["completion"], where)), _tools(value.get("tools"), where))


def _text(value: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(value[key], str):
        raise FormatError(f"{where}: {key!r} must be a string")
    return str(value[key])


def _messages(value: Any, where: str, *, needs_answer: bool = True) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise FormatError(f"{where}: messages must be a list of at least one")
    for i, message in enumerate(value):
        _check_message(message, f"{where}: messages[{i}]")
    if needs_answer and not any(message["role"] == "assistant" for message in value):
        raise FormatError(f"{where}: no message is the assistant's, so there is nothing to learn")
    return tuple(value)


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise FormatError(f"{where}: role is {role!r}, must be one of {', '.join(ROLES)}")
    if "function_call" in message:
        raise UnsupportedError(f"{where}: 'function_call' was replaced by 'tool_calls'; write those")
    content, calls = message.get("content"), message.get("tool_calls")
    if content is not None and not isinstance(content, (str, list)):
        raise FormatError(f"{where}: content must be text, a list of text parts, or null")
    if content is None and message["role"] != "assistant":
        raise FormatError(f"{where}: content is missing")
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        raise FormatError(f"{where}: tool_calls must be a list of calls with function.name and function.arguments")
    if message.get("weight", 1) not in (0, 1):
        raise FormatError(f"{where}: weight is {message['weight']!r}, must be 0 or 1")


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def _tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise FormatError(f"{where}: tools must be a list of objects")
    return tuple(value)
