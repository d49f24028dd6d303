"""The `ollama` client."""

from __future__ import annotations

import json

import ollama
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


def client_of(key: str) -> ollama.Client:
    return ollama.Client(host=URL.removesuffix("/v1"), headers={"Authorization": f"Bearer {key}"}, timeout=120)


client = client_of(KEY)
ASK = {"model": MODEL, "options": {"temperature": 0, "num_predict": LIMIT}}


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat() -> None:
    answer = client.chat(**ASK, messages=messages(QUESTION))
    check_capital(answer.message.content)
    assert (answer.done_reason, answer.eval_count > 2) == ("stop", True)


def stream() -> None:
    check_streamed([part.message.content for part in client.chat(**ASK, messages=messages(QUESTION), stream=True)])


def generate() -> None:
    check_capital(client.generate(**ASK, prompt=QUESTION).response)
    check_streamed([part.response for part in client.generate(**ASK, prompt=QUESTION, stream=True)])
    between = client.generate(model=MODEL, prompt="def add(a, b):\n    return ", suffix="\n", options=ASK["options"])
    assert "a + b" in between.response


def tools() -> None:
    asked = messages(WEATHER_QUESTION)
    first = client.chat(**ASK, messages=asked, tools=TOOLS)
    for call in first.message.tool_calls or ():
        assert call.function.name == "get_weather"
        asked += [first.message, {"role": "tool", "content": WEATHER, "tool_name": "get_weather"}]
    assert client.chat(**ASK, messages=asked).message.content


def structured() -> None:
    answer = client.chat(**ASK, messages=messages(PERSON_QUESTION), format=Person.model_json_schema())
    assert Person(**json.loads(answer.message.content)) == Person(name="Jason", age=25)


def models() -> None:
    assert [model.model for model in client.list().models] == [MODEL]
    assert "completion" in client.show(MODEL).capabilities
    assert client.ps().models[0].model == MODEL


def refusal() -> None:
    raises(ollama.ResponseError, lambda: client.chat(model="other", messages=messages(QUESTION)))
    raises(ollama.ResponseError, lambda: client_of(WRONG_KEY).chat(**ASK, messages=messages(QUESTION)))


if __name__ == "__main__":
    run(chat, stream, generate, tools, structured, models, refusal)
