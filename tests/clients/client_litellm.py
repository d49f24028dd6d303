"""`litellm`, which many gateways and agents speak through."""

from __future__ import annotations

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a list of prices

import litellm
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

ASK = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "temperature": 0, "max_tokens": LIMIT}


def chat() -> None:
    answer = litellm.completion(**ASK, messages=[{"role": "user", "content": QUESTION}])
    check_capital(answer.choices[0].message.content)


def stream() -> None:
    chunks = litellm.completion(**ASK, messages=[{"role": "user", "content": QUESTION}], stream=True)
    check_streamed([chunk.choices[0].delta.content or "" for chunk in chunks])


def tools() -> None:
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    answer = litellm.completion(
        **ASK, messages=messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
    )
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert "Paris" in json.loads(call.function.arguments)["city"]
    result = {"role": "tool", "tool_call_id": call.id, "content": WEATHER}
    # the message goes back as litellm dumps it, with all the fields that it has added
    final = litellm.completion(
        **ASK, messages=[*messages, message.model_dump(), result], tools=TOOLS, tool_choice="none"
    )
    assert "12" in final.choices[0].message.content


def streamed_tools() -> None:
    chunks = litellm.completion(
        **ASK,
        messages=[{"role": "user", "content": WEATHER_QUESTION}],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
    )
    whole = litellm.stream_chunk_builder(list(chunks))
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments)["city"]


def structured() -> None:
    messages = [{"role": "user", "content": PERSON_QUESTION}]
    answer = litellm.completion(**ASK, messages=messages, response_format=Person)
    assert Person.model_validate_json(answer.choices[0].message.content) == Person(name="Jason", age=25)


def refusal() -> None:
    ask = {**ASK, "messages": [{"role": "user", "content": QUESTION}]}
    raises(litellm.BadRequestError, lambda: litellm.completion(**ask, functions=[{"name": "f", "parameters": {}}]))
    raises(litellm.AuthenticationError, lambda: litellm.completion(**{**ask, "api_key": WRONG_KEY}))
    long = [{"role": "user", "content": "word " * 5000}]
    raises(litellm.ContextWindowExceededError, lambda: litellm.completion(**{**ask, "messages": long}))


if __name__ == "__main__":
    run(chat, stream, tools, streamed_tools, structured, refusal)
