"""Runs the cases of one client, inside the environment that has it, and says on standard output what became of each.

A client's script is started with the server's URL, its key and the model's name; every function that it hands to
`run` is one case. This file and the scripts import nothing of Pagoda.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable

from pydantic import BaseModel

URL, KEY, MODEL = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")

WRONG_KEY = "sk-wrong"
QUESTION = "What is the capital of France? Answer in one short sentence."
WEATHER_QUESTION = "What is the weather in Paris?"
WEATHER = "rain, 12 degrees"
PERSON_QUESTION = "Extract the person: Jason is 25 years old."
LIMIT = 64  # tokens of an answer

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}}]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def run(*cases: Callable[[], None]) -> None:
    """One line of JSON for each case: its name, and the traceback if it failed."""
    for case in cases:
        try:
            case()
        except BaseException:  # pydantic and others raise what is no Exception when they break
            said = traceback.format_exc()
        else:
            said = ""
        print("case", json.dumps({"name": case.__name__, "error": said}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # some clients leave threads behind


def check_capital(text: object) -> None:
    assert isinstance(text, str), text
    assert "Paris" in text, text


def check_streamed(pieces: list[str]) -> None:
    check_capital("".join(pieces))
    assert len(pieces) > 2, pieces


def raises(kind: type[BaseException], action: Callable[[], object]) -> BaseException:
    """What `action` raises, which has to be of `kind`."""
    try:
        result = action()
    except kind as error:
        return error
    raise AssertionError(f"nothing was raised: {result!r}")
