"""`langchain-openai`: chat, tools bound to a model, and `with_structured_output` by each of its methods."""

from __future__ import annotations

import openai
from cases import (
    KEY,
    LIMIT,
    MODEL,
    PERSON_QUESTION,
    QUESTION,
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
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

SETTINGS = {"model": MODEL, "base_url": URL, "temperature": 0, "max_tokens": LIMIT, "max_retries": 0}
model = ChatOpenAI(**SETTINGS, api_key=KEY)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER


def chat() -> None:
    answer = model.invoke(QUESTION)
    check_capital(answer.content)
    assert answer.usage_metadata["output_tokens"] > 0


def stream() -> None:
    check_streamed([chunk.content for chunk in model.stream(QUESTION)])


def tools() -> None:
    bound = model.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage(WEATHER_QUESTION)
    asked = bound.invoke([question])
    (call,) = asked.tool_calls
    assert not asked.invalid_tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    final = model.bind_tools([get_weather], tool_choice="none").invoke([question, asked, result])
    assert "12" in final.content


def streamed_tools() -> None:
    bound = model.bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    whole = None
    for chunk in bound.stream(WEATHER_QUESTION):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert call["name"] == "get_weather"
    assert "Paris" in call["args"]["city"]


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(Person, method=method).invoke(PERSON_QUESTION)
        assert found == Person(name="Jason", age=25), (method, found)


def refusal() -> None:
    bad = raises(openai.BadRequestError, lambda: model.invoke(QUESTION, functions=[{"name": "f", "parameters": {}}]))
    assert bad.param == "functions"
    raises(openai.AuthenticationError, lambda: ChatOpenAI(**SETTINGS, api_key=WRONG_KEY).invoke(QUESTION))


if __name__ == "__main__":
    run(chat, stream, tools, streamed_tools, structured, refusal)
