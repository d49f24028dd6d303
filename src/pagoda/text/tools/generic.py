"""For models whose template knows no tools: what Hermes writes, asked for in the system message.

The parser takes what small models make of that: tags or none, blocks of code, lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.text.tools.hermes import CLOSE, OPEN, Hermes

ASKS = f"""You can call functions. These are there, each with a JSON Schema of its arguments:
{{functions}}
To call one, answer with its name and arguments as JSON between tags, and nothing else:
{OPEN}
{{{{"name": "function_name", "arguments": {{{{"argument": "value"}}}}}}}}
{CLOSE}
When no function is of use, answer in words."""


@dataclass(frozen=True, slots=True)
class Generic(Hermes):
    """See the module."""

    name: str = "generic"

    def is_of(self, template: str) -> bool:
        return True

    def told(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The conversation as a template without tools can show it."""
        functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        asked = ASKS.format(functions=functions)
        shown = self.shown(messages)
        if shown and shown[0]["role"] == "system":
            return [{**shown[0], "content": f"{_text(shown[0]['content'])}\n\n{asked}"}, *shown[1:]]
        return [{"role": "system", "content": asked}, *shown]

    def shown(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The conversation with earlier calls and their results as plain messages."""
        return [_shown(message) for message in messages]


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """Calls become what the model would write, and their results a message of the user. Others stay as they are."""
    if message["role"] != "tool" and not message.get("tool_calls"):
        return dict(message)
    content = _text(message.get("content"))
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = [_written(call) for call in message["tool_calls"]]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([*([content] if content else []), *calls])}


def _written(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{OPEN}\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {text}}}\n{CLOSE}'


def _text(content: Any) -> str:
    """The text of a message's content, which may come in parts."""
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""
