"""Questions with the answers that they got, in their order: what a cache would have done with them can be measured.

    {"question": …, "answer": …, "partition": …, "group": …}

`messages` may stand in place of `question`, as chats have them. Questions are compared within a partition (any text;
earlier turns and the system prompt are part of it). Those of one `group` want one answer; where no group is given, how
alike the answers are tells it. `pagoda serve --cache-log` writes such lines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pagoda.cache.entry import digest
from pagoda.cache.lines import read_json_lines
from pagoda.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Logged:
    """One line."""

    question: str
    answer: str
    partition: str = ""
    group: str | None = None


class QuestionLog:
    """Appends to a file. Any thread may write."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"--cache-log {path}: cannot be written: {error.strerror}") from None

    def write(self, line: Logged) -> None:
        """One call of the operating system, so that lines of several threads do not mix. A full disk loses the line."""
        shape = {"time": round(time.time(), 3), "partition": line.partition}
        try:
            self._file.write(orjson.dumps(shape | {"question": line.question, "answer": line.answer}) + b"\n")
        except OSError as error:
            log.warning("a question was not logged: %s", error)

    def close(self) -> None:
        self._file.close()


def is_question_log(path: Path) -> bool:
    """Whether the first line is one of these. Raises ConfigError."""
    for _, row in read_json_lines(path):
        return isinstance(row, dict) and ("question" in row or "messages" in row)
    return False


def read_question_log(path: Path) -> list[Logged]:
    """Raises ConfigError naming the line."""
    found = []
    for number, row in read_json_lines(path):
        try:
            found.append(_logged(row))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise ConfigError(
                f'{path}, line {number}: not {{"question": …, "answer": …}}, or "messages" in place of "question"'
            ) from None
    if not found:
        raise ConfigError(f"{path}: there is no question in it")
    return found


def _logged(row: Mapping[str, Any]) -> Logged:
    question, earlier = row.get("question"), ""
    if question is None:
        *before, last = row["messages"]
        question = last["content"]
        earlier = digest(f"{turn['role']}: {turn['content']}" for turn in before)
    answer, group = row["answer"], row.get("group")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError("question and answer are texts")
    partition = digest([str(row.get("partition", "")), earlier])
    return Logged(question, answer, partition, None if group is None else str(group))
