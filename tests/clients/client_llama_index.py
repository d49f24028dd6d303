"""`llama-index-llms-openai-like`: LlamaIndex's class for servers that speak OpenAI's API."""

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
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

SETTINGS = {
    "model": MODEL,
    "api_base": URL,
    "temperature": 0,
    "max_tokens": LIMIT,
    "max_retries": 0,
    "context_window": 2048,
    "is_chat_model": True,
    "is_function_calling_model": True,
}
llm = OpenAILike(**SETTINGS, api_key=KEY)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER


weather_tool = FunctionTool.from_defaults(get_weather)


def chat() -> None:
    check_capital(llm.chat([ChatMessage(role="user", content=QUESTION)]).message.content)


def stream() -> None:
    chunks = llm.stream_chat([ChatMessage(role="user", content=QUESTION)])
    check_streamed([chunk.delta or "" for chunk in chunks])


def tools() -> None:
    asked = llm.chat_with_tools([weather_tool], WEATHER_QUESTION, tool_required=True)
    (call,) = llm.get_tool_calls_from_response(asked)
    assert "Paris" in call.tool_kwargs["city"]
    result = weather_tool(**call.tool_kwargs)
    history = [
        ChatMessage(role="user", content=WEATHER_QUESTION),
        asked.message,
        ChatMessage(role="tool", content=str(result), additional_kwargs={"tool_call_id": call.tool_id}),
    ]
    assert "12" in llm.chat(history).message.content


def structured() -> None:
    prompt = PromptTemplate(PERSON_QUESTION)
    assert llm.structured_predict(Person, prompt) == Person(name="Jason", age=25)


def refusal() -> None:
    messages = [ChatMessage(role="user", content=QUESTION)]
    raises(openai.AuthenticationError, lambda: OpenAILike(**SETTINGS, api_key=WRONG_KEY).chat(messages))
    bad = raises(openai.BadRequestError, lambda: llm.chat(messages, functions=[{"name": "f", "parameters": {}}]))
    assert bad.param == "functions"


if __name__ == "__main__":
    run(chat, stream, tools, structured, refusal)
