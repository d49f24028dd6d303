"""The `openai` client; the same script for its versions 1 to 3."""

from __future__ import annotations

import json

import openai
from cases import (
    KEY,
    LIMIT,
    MODEL,
    PERSON_QUESTION,
    QUESTION,
    TOOLS,
    URL,
    WEATHER,
    WEATHER_QUESTION,
    WRONG_KEY,
    Person,
    check_capital,
    check_streamed,
    raises,
    run,
)

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=120)
ASK = {"model": MODEL, "temperature": 0, "max_tokens": LIMIT}


def chat() -> None:
    answer = client.chat.completions.create(**ASK, messages=[{"role": "user", "content": QUESTION}])
    check_capital(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"


def stream() -> None:
    chunks = client.chat.completions.create(**ASK, messages=[{"role": "user", "content": QUESTION}], stream=True)
    check_streamed([chunk.choices[0].delta.content or "" for chunk in chunks])


def tools() -> None:
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    ask = {**ASK, "tools": TOOLS}
    answer = client.chat.completions.create(**ask, messages=messages, tool_choice="required", parallel_tool_calls=False)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments)["city"]
    result = {"role": "tool", "tool_call_id": call.id, "content": WEATHER}
    final = client.chat.completions.create(**ask, messages=[*messages, choice.message, result], tool_choice="none")
    assert "12" in final.choices[0].message.content
    assert final.choices[0].message.tool_calls is None


def streamed_tools() -> None:
    chunks = client.chat.completions.create(
        **ASK,
        messages=[{"role": "user", "content": WEATHER_QUESTION}],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        stream=True,
    )
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert {piece.index for piece in pieces} == {0}
    assert [piece.function.name for piece in pieces if piece.id] == ["get_weather"]
    assert "Paris" in json.loads("".join(piece.function.arguments for piece in pieces))["city"]


def structured() -> None:
    parse = getattr(client.chat.completions, "parse", None) or client.beta.chat.completions.parse
    answer = parse(**ASK, messages=[{"role": "user", "content": PERSON_QUESTION}], response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Jason", age=25)


def refusal() -> None:
    messages = [{"role": "user", "content": QUESTION}]
    bad = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(**ASK, messages=messages, functions=[{"name": "f", "parameters": {}}]),
    )
    assert bad.param == "functions"
    raises(
        openai.AuthenticationError,
        lambda: client.with_options(api_key=WRONG_KEY).chat.completions.create(**ASK, messages=messages),
    )
    unknown = {**ASK, "model": "gpt-5"}
    raises(openai.NotFoundError, lambda: client.chat.completions.create(**unknown, messages=messages))


if __name__ == "__main__":
    run(chat, stream, tools, streamed_tools, structured, refusal)
