"""`pydantic-ai`: an agent, and the requests that it is made of."""

from __future__ import annotations

import asyncio

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
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.direct import model_request_sync
from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

SETTINGS = {"temperature": 0, "max_tokens": LIMIT, "parallel_tool_calls": False}


def model(key: str = KEY) -> OpenAIChatModel:
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=key))


def chat() -> None:
    check_capital(Agent(model(), model_settings=SETTINGS).run_sync(QUESTION).output)


def stream() -> None:
    async def pieces() -> list[str]:
        async with Agent(model(), model_settings=SETTINGS).run_stream(QUESTION) as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    check_streamed(asyncio.run(pieces()))


def tools() -> None:
    weather = ToolDefinition(name="get_weather", description="Weather.", parameters_json_schema=SCHEMA)
    asked = ModelRequest.user_text_prompt(WEATHER_QUESTION)
    required = ModelRequestParameters(function_tools=[weather], allow_text_output=False)
    answer = model_request_sync(model(), [asked], model_settings=SETTINGS, model_request_parameters=required)
    (call,) = [part for part in answer.parts if isinstance(part, ToolCallPart)]
    assert "Paris" in call.args_as_dict()["city"]
    result = ModelRequest(parts=[ToolReturnPart(call.tool_name, WEATHER, tool_call_id=call.tool_call_id)])
    final = model_request_sync(model(), [asked, answer, result], model_settings=SETTINGS)
    assert "12" in final.text


def structured() -> None:
    for output in (Person, NativeOutput(Person)):
        found = Agent(model(), output_type=output, model_settings=SETTINGS).run_sync(PERSON_QUESTION).output
        assert found == Person(name="Jason", age=25), (output, found)


def refusal() -> None:
    refused = raises(ModelHTTPError, lambda: Agent(model(WRONG_KEY)).run_sync(QUESTION))
    assert refused.status_code == 401
    unknown = {"extra_body": {"temprature": 1}}
    refused = raises(ModelHTTPError, lambda: Agent(model(), model_settings=unknown).run_sync(QUESTION))
    assert refused.status_code == 400
    assert "temprature" in str(refused.body)


if __name__ == "__main__":
    run(chat, stream, tools, structured, refusal)
