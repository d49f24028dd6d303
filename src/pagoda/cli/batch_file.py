"""The two ends of `pagoda generate`: tasks from lines of the input, records in lines of the output.

A line of the input is one of

    {"id": "a", "prompt": "Once upon a time", "max_tokens": 32, ...}                        → /v1/completions
    {"id": "b", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, ...}     → /v1/chat/completions
    {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {...}}      OpenAI's batch format

with any fields of that endpoint besides. A line without an id goes by its number, from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pagoda.errors import ConfigError, PagodaError, RequestError
from pagoda.server.json_body import MARKS, parse_json, wrong_encoding

PATHS = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}
Id = str | int


class LineError(PagodaError):
    """A line of the input that is not a valid task."""


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the input: what to ask for, or why it cannot be asked."""

    id: Id
    path: str
    body: Mapping[str, Any]
    is_batch: bool  # OpenAI's batch format: the answer comes in it too
    error: str | None = None


def read_tasks(file: BinaryIO, defaults: Mapping[str, Any]) -> Iterator[Task]:
    """The tasks of a file, blank lines left out. `defaults` are fields for lines that do not set them.

    Raises ConfigError for a file in UTF-16 or UTF-32.
    """
    seen: dict[Id, int] = {}
    for number, line in enumerate(file, 1):
        if number == 1 and line.startswith(tuple(mark for mark, _ in MARKS)):
            raise ConfigError(f"the input is not UTF-8: {wrong_encoding(line)}")
        if not line.strip():
            continue
        data: Any = None
        try:
            data = parse_json(line, "the line")
            task = _parse(data, number, defaults)
            if task.id in seen:
                raise LineError(f"the id {task.id!r} stands in line {seen[task.id]} too")
            seen[task.id] = number
        except (LineError, RequestError) as error:
            yield _bad(data, number, f"line {number}: {error}", seen)
        else:
            yield task


def _parse(data: Any, number: int, defaults: Mapping[str, Any]) -> Task:
    if not isinstance(data, dict):
        raise LineError("is not a JSON object")
    if "custom_id" in data or "url" in data:
        return _parse_batch(data)
    id_ = data.get("id", number)
    if not isinstance(id_, (str, int)) or isinstance(id_, bool):
        raise LineError(f"the id {id_!r} is neither text nor a whole number")
    given = [name for name in PATHS if name in data]
    if len(given) != 1:
        raise LineError("must have one of 'prompt' and 'messages'")
    body = {name: value for name, value in data.items() if name != "id"}
    return Task(id_, PATHS[given[0]], _prepare(body, defaults), is_batch=False)


def _parse_batch(data: dict[str, Any]) -> Task:
    if not isinstance(data.get("custom_id"), str):
        raise LineError("custom_id must be text")
    if data.get("method", "POST") != "POST" or data.get("url") not in PATHS.values():
        method, url = data.get("method", "POST"), data.get("url")
        raise LineError(f"{method} {url} cannot be done, only POST {' and '.join(PATHS.values())}")
    if not isinstance(data.get("body"), dict):
        raise LineError("body must be a JSON object")
    return Task(data["custom_id"], data["url"], _prepare(data["body"], {}), is_batch=True)


def _prepare(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The request's body. Files often name a model that is not here; whoever sends it decides the model."""
    if body.get("stream"):
        raise LineError("stream has no meaning in a file; leave it out")
    return {**defaults, **{name: value for name, value in body.items() if name != "model"}}


def _bad(data: Any, number: int, error: str, seen: Mapping[Id, int]) -> Task:
    """A task that fails with a message, under its own id if that is valid and unused."""
    stated: Any = data.get("custom_id", data.get("id")) if isinstance(data, dict) else None
    is_batch = isinstance(data, dict) and "custom_id" in data
    usable = isinstance(stated, (str, int)) and not isinstance(stated, bool)
    id_: Id = stated if usable and stated not in seen else f"line-{number}"
    return Task(id_, "", {}, is_batch, error)


def record_of(task: Task, status: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The output's line for an answer of `status`, an OpenAI response or error object."""
    if task.is_batch:
        response = {"status_code": status, "request_id": answer.get("id", ""), "body": answer}
        return {"id": f"batch_req_{task.id}", "custom_id": task.id, "response": response, "error": None}
    if status >= 400:
        return {"id": task.id, "error": answer["error"]}
    choices = answer["choices"]
    record = {"id": task.id, "text": _text(choices[0]), "finish_reason": choices[0]["finish_reason"]}
    record["usage"] = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    if len(choices) > 1 or choices[0].get("logprobs") is not None:
        record["choices"] = choices
    return record


def _text(choice: Mapping[str, Any]) -> str:
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


def repair(path: Path) -> set[Id]:
    """Ids that the output holds already; a last line that was torn off is removed. ConfigError: another's file."""
    if not path.is_file():  # not there yet, or nothing that could be read back, as /dev/stdout
        return set()
    done: set[Id] = set()
    with path.open("r+b") as file:
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            done.add(_id_of(path, number, line))
        file.truncate(whole)
    return done


def _id_of(path: Path, number: int, line: bytes) -> Id:
    try:
        record = json.loads(line)
        id_: Id = record["custom_id"] if "custom_id" in record else record["id"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path}: line {number} was not written by `pagoda generate`; choose another file, or remove it"
        ) from None
    return id_
