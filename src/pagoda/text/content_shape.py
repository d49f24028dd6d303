"""In which shape a chat template reads the content of messages: as a string, as a list of parts, or as either.

A template that loops over parts finds none in a string, and one that wants a string writes a list as Python does. Which
of them a template is shows when conversations are tried out on it. Some read system prompts otherwise than questions,
so each role is tried by itself. Arguments of tool calls have two shapes, too: an object, or its JSON as a string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PROBED_ROLES = ("user", "system", "assistant", "tool")  # others read as the user does

_FIRST, _SECOND, _OTHER, _KEY = "a-probe-text", "a-second-probe", "a-question", "a-probe-key"

Render = Callable[[Sequence[dict[str, Any]]], str | None]


@dataclass(frozen=True, slots=True)
class ContentShape:
    """What a template reads as content."""

    text: bool = True  # a string
    parts: bool = False  # a list of parts
    one_part: bool = False  # a list, of which it reads the first part only

    def of(self, content: str | Sequence[str]) -> str | list[dict[str, str]]:
        """Content as the template reads it: of a string, or of the texts of parts."""
        if isinstance(content, str):
            return content if self.text or not (self.parts or self.one_part) else [_part(content)]
        if self.parts:
            return [_part(text) for text in content]
        joined = "\n".join(content)
        return [_part(joined)] if self.one_part and not self.text else joined


def find_shape(role: str, render: Render) -> ContentShape:
    """How a template reads content of `role`, one of PROBED_ROLES. `render` gives None where the template refuses."""
    found = _probe(role, str, render) or _probe(role, _parts, render)
    if found is None and role != "user":
        return find_shape("user", render)
    return found or ContentShape()


def wants_json_arguments(render: Render) -> bool:
    """Whether a template reads the arguments of tool calls as a string of JSON, and not as an object."""
    arguments = {_KEY: "a-probe-value"}
    for other in (str, _parts):
        as_object, as_json = (
            render(_conversation("tool", other(_OTHER), other, written)) or ""
            for written in (arguments, json.dumps(arguments))
        )
        if "a-probe-value" in as_object and f"'{_KEY}'" not in as_object:  # not written out as Python does it
            return False
        if json.dumps(arguments) in as_json:
            return True
    return False


def _probe(role: str, other: Callable[[str], Any], render: Render) -> ContentShape | None:
    """Tries a conversation in which the other messages' content is as `other` shapes it. None: nothing is read."""
    listed = [{**_part(text), _KEY: "a-probe-value"} for text in (_FIRST, _SECOND)]
    as_text, as_parts = (render(_conversation(role, content, other)) or "" for content in (_FIRST, listed))
    text = _FIRST in as_text
    parts = _FIRST in as_parts and _KEY not in as_parts  # not written out as Python's or JSON's list
    if not (text or parts):
        return None
    both = parts and _SECOND in as_parts
    return ContentShape(text=text, parts=both, one_part=parts and not both)


def _conversation(role: str, content: Any, other: Callable[[str], Any], arguments: Any = None) -> list[dict[str, Any]]:
    """A conversation that most templates take, with one message of the role."""
    message = {"role": role, "content": content}
    question = {"role": "user", "content": other(_OTHER)}
    if role == "user":
        return [message]
    if role == "system":
        return [message, question]
    if role == "assistant":
        return [question, message, question]
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "probe", "arguments": arguments or {"argument": "value"}},
    }
    asked = {"role": "assistant", "content": other(""), "tool_calls": [call]}
    return [question, asked, {**message, "tool_call_id": "call00001", "name": "probe"}]


def _parts(text: str) -> list[dict[str, str]]:
    return [_part(text)]


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
