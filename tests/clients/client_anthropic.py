"""The `anthropic` client's Messages API."""

from __future__ import annotations

import anthropic
from cases import (
    KEY,
    LIMIT,
    MODEL,
    QUESTION,
    SCHEMA,
    URL,
    WEATHER,
    WEATHER_QUESTION,
    WRONG_KEY,
    check_capital,
    check_streamed,
    raises,
    run,
)

client = anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key=KEY, max_retries=0, timeout=120)
ASK = {"model": MODEL, "max_tokens": LIMIT, "extra_body": {"temperature": 0}}
TOOL = {"name": "get_weather", "description": "Weather.", "input_schema": SCHEMA}


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat() -> None:
    message = client.messages.create(**ASK, messages=messages(QUESTION), system="Be brief.")
    check_capital(message.content[0].text)
    assert message.stop_reason == "end_turn"


def stream() -> None:
    with client.messages.stream(**ASK, messages=messages(QUESTION)) as events:
        check_streamed(list(events.text_stream))
        message = events.get_final_message()
    check_capital(message.content[0].text)
    assert message.usage.output_tokens > 2


def tools() -> None:
    asked = messages(WEATHER_QUESTION)
    first = client.messages.create(
        **ASK, messages=asked, tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True}
    )
    assert first.stop_reason == "tool_use"
    (use,) = [block for block in first.content if block.type == "tool_use"]
    assert "Paris" in use.input["city"]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": WEATHER}
    asked += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(**ASK, messages=asked, tools=[TOOL], tool_choice={"type": "none"})
    assert "12" in last.content[0].text


def streamed_tools() -> None:
    choice = {"type": "tool", "name": "get_weather"}
    with client.messages.stream(**ASK, messages=messages(WEATHER_QUESTION), tools=[TOOL], tool_choice=choice) as events:
        message = events.get_final_message()
    assert "Paris" in message.content[0].input["city"]


def count_tokens() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=messages(QUESTION))
    used = client.messages.create(**ASK, messages=messages(QUESTION)).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


def refusal() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    raises(
        anthropic.BadRequestError,
        lambda: client.messages.create(**ASK, messages=[{"role": "user", "content": [image]}]),
    )
    other = client.with_options(api_key=WRONG_KEY)
    raises(anthropic.AuthenticationError, lambda: other.messages.create(**ASK, messages=messages(QUESTION)))
    unknown = {**ASK, "model": "claude"}
    raises(anthropic.NotFoundError, lambda: client.messages.create(**unknown, messages=messages(QUESTION)))


if __name__ == "__main__":
    run(chat, stream, tools, streamed_tools, count_tokens, refusal)
