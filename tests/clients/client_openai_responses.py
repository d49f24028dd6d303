"""The `openai` client's Responses API; the same script for its versions 1 to 3."""

from __future__ import annotations

import json

import openai
from cases import (
    KEY,
    LIMIT,
    MODEL,
    PERSON_QUESTION,
    QUESTION,
    SCHEMA,
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
ASK = {"model": MODEL, "temperature": 0, "max_output_tokens": LIMIT}
TOOL = {"type": "function", "name": "get_weather", "description": "Weather.", "parameters": SCHEMA, "strict": False}


def chat() -> None:
    response = client.responses.create(**ASK, input=QUESTION)
    check_capital(response.output_text)
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def stream() -> None:
    pieces = []
    with client.responses.stream(**ASK, input=QUESTION) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
        check_capital(events.get_final_response().output_text)
    check_streamed(pieces)


def tools() -> None:
    """A loop: the model calls, the caller answers, the model says what it was told."""
    ask = {**ASK, "tools": [TOOL]}
    first = client.responses.create(**ask, input=WEATHER_QUESTION, tool_choice="required", parallel_tool_calls=False)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert "Paris" in json.loads(call.arguments)["city"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER}
    last = client.responses.create(**ask, input=[result], previous_response_id=first.id, tool_choice="none")
    assert "12" in last.output_text
    items = [{"role": "user", "content": WEATHER_QUESTION}, *first.output, result]
    assert client.responses.create(**ask, input=items, tool_choice="none").output_text == last.output_text


def streamed_tools() -> None:
    events = client.responses.create(
        **ASK,
        input=WEATHER_QUESTION,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "get_weather"},
        stream=True,
    )
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "Paris" in json.loads(done[0].arguments)["city"]


def structured() -> None:
    response = client.responses.parse(**ASK, input=PERSON_QUESTION, text_format=Person)
    assert response.output_parsed == Person(name="Jason", age=25)


def previous() -> None:
    """Kept, gone on with, had again, deleted; cancelled in the background."""
    first = client.responses.create(**ASK, input="My name is Ada. Say hello.", instructions="Be brief.")
    second = client.responses.create(**ASK, input="What is my name?", previous_response_id=first.id)
    assert "Ada" in second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    raises(openai.NotFoundError, lambda: client.responses.retrieve(first.id))
    raises(openai.BadRequestError, lambda: client.responses.create(**ASK, input="x", previous_response_id=first.id))
    long = client.responses.create(model=MODEL, input="Count to a thousand.", max_output_tokens=1500, background=True)
    assert client.responses.cancel(long.id).status == "cancelled"


def refusal() -> None:
    bad = raises(openai.BadRequestError, lambda: client.responses.create(**ASK, input=QUESTION, truncation="auto"))
    assert bad.param == "truncation"
    raises(
        openai.AuthenticationError,
        lambda: client.with_options(api_key=WRONG_KEY).responses.create(**ASK, input=QUESTION),
    )


if __name__ == "__main__":
    run(chat, stream, tools, streamed_tools, structured, previous, refusal)
