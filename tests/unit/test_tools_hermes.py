"""Hermes and Qwen: tags, and what small models write instead of them."""

from __future__ import annotations

import pytest

from pagoda.text.tools.hermes import Hermes
from tool_parsing import Said, said

ADD = '{"name": "add", "arguments": {"a": 1}}'
CALLED: Said = ("add", '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<tool_call>\n{ADD}\n</tool_call>", [CALLED]),
        (f"I add.\n\n<tool_call>\n{ADD}\n</tool_call>\n<tool_call>{ADD}</tool_call>", ["I add.", CALLED, CALLED]),
        (f"<tool_call>\n{ADD}\n</tool_call>\nDone.", [CALLED, "Done."]),
        (f"<tool_call>[{ADD}, {ADD}]</tool_call>", [CALLED, CALLED]),
        (f"<tool_call>\n{ADD}", [CALLED]),  # the end is left out
        # without tags
        (ADD, [CALLED]),
        (f"Now:\n{ADD}\n{ADD}", ["Now:", CALLED, CALLED]),
        (f"```json\n{ADD}\n```", [CALLED]),
        (f"Here:\n```\n[{ADD},\n {ADD}]\n```\nThat is it.", ["Here:", CALLED, CALLED, "That is it."]),
        # no calls
        (f"Write {ADD} to call.", [f"Write {ADD} to call."]),
        ('```json\n{"name": "Bob"}\n```', ['```json\n{"name": "Bob"}\n```']),
        ("<tool_call>\nthat I make</tool_call>", ["<tool_call>\nthat I make</tool_call>"]),
        ("the tag <tool_call> begins one", ["the tag <tool_call> begins one"]),
    ],
)
def test_answers(text: str, expected: list[Said]) -> None:
    assert said(Hermes(), text) == expected
