"""The same conversation as each protocol asks it, for tests that send it through all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from door_machines import named_events
from serving import events

SYSTEM, QUESTION, EARLIER, NEXT = "Be brief.", "Who are you?", "A model.", "Now tell me a long story."
RENDERED = f"system: {SYSTEM}\nuser: {QUESTION}\nassistant: {EARLIER}\nuser: {NEXT}\n> "
TURNS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": EARLIER},
    {"role": "user", "content": NEXT},
]
ALL = [{"role": "system", "content": SYSTEM}, *TURNS]


def of_lines(response: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in response.text.splitlines()]


def of_llama(response: httpx.Response) -> list[Any]:
    return [json.loads(part.removeprefix("data: ")) for part in response.text.split("\n\n") if part]


@dataclass(frozen=True)
class Door:
    """How the conversation is asked here, and where an answer has its text."""

    path: str
    body: dict[str, Any]
    limit: tuple[str, ...]  # the field that bounds the answer
    whole: Callable[[Any], str]
    parse: Callable[[httpx.Response], list[Any]]
    piece: Callable[[Any], str]

    def asking(self, limit: int, *, stream: bool) -> dict[str, Any]:
        body = self.body | {"stream": stream}
        if len(self.limit) == 1:
            return body | {self.limit[0]: limit}
        return body | {self.limit[0]: self.body[self.limit[0]] | {self.limit[1]: limit}}


def doors(model: str, rendered: str, prompt: Any) -> dict[str, Door]:
    """`rendered` is the conversation as the template has it; `prompt` that, or its ids."""
    return {
        "chat": Door("/v1/chat/completions", {"messages": ALL, "temperature": 0}, ("max_tokens",),
                     lambda a: a["choices"][0]["message"]["content"], events,
                     lambda e: e["choices"][0]["delta"].get("content", "")),
        "completions": Door("/v1/completions", {"prompt": rendered, "temperature": 0, "add_special_tokens": False},
                            ("max_tokens",), lambda a: a["choices"][0]["text"], events,
                            lambda e: e["choices"][0]["text"]),
        "responses": Door("/v1/responses", {"instructions": SYSTEM, "input": TURNS, "temperature": 0},
                          ("max_output_tokens",), lambda a: a["output"][0]["content"][0]["text"], named_events,
                          lambda e: e["delta"] if e["type"] == "response.output_text.delta" else ""),
        "messages": Door("/v1/messages", {"system": SYSTEM, "messages": TURNS, "temperature": 0}, ("max_tokens",),
                         lambda a: a["content"][0]["text"], named_events,
                         lambda e: e["delta"]["text"] if e["type"] == "content_block_delta" else ""),
        "llama-server": Door("/completion", {"prompt": prompt, "temperature": 0}, ("n_predict",),
                             lambda a: a["content"], of_llama, lambda e: e["content"]),
        "ollama chat": Door("/api/chat", {"model": model, "messages": ALL, "options": {"temperature": 0}},
                            ("options", "num_predict"), lambda a: a["message"]["content"], of_lines,
                            lambda e: e["message"]["content"]),
    }  # fmt: skip


# One message alone is all that /api/generate takes.
GENERATE = Door("/api/generate", {"model": "fake", "prompt": NEXT, "system": SYSTEM, "options": {"temperature": 0}},
                ("options", "num_predict"), lambda a: a["response"], of_lines, lambda e: e["response"])  # fmt: skip
