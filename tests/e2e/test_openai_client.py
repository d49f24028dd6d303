"""The `openai` client, as it comes, against the real default model over real HTTP."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from serving import Served, serving

KEY = "sk-test"
MODEL = "smollm2"
COMMA = 28  # its token
CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]


@pytest.fixture(scope="module")
def served(default_model: Path) -> Iterator[Served]:
    settings = EngineSettings(model=str(default_model), max_context=2048, max_num_seqs=32)
    with serving(load_engine(settings), served_model_name=MODEL, api_keys=(KEY,)) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "pagoda"


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=40)
    (choice,) = answer.choices
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens < 40
    assert answer._request_id


def test_chat_stream_equals_the_whole(client: OpenAI) -> None:
    ask = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


def test_a_known_prefix_is_not_computed_again(client: OpenAI) -> None:
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "Count to three. " * 10}], "max_tokens": 2}
    client.chat.completions.create(**ask)
    again = client.chat.completions.create(**ask)
    assert again.usage.prompt_tokens_details.cached_tokens >= 16


def test_chat_logprobs(client: OpenAI) -> None:
    ask = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "max_tokens": 8}
    answer = client.chat.completions.create(**ask, logprobs=True, top_logprobs=5)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode().startswith(answer.choices[0].message.content)
    for entry in content:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 5
        assert tops == sorted(tops, reverse=True)
        assert entry.logprob == tops[0] <= 0  # greedy
        assert sum(math.exp(top) for top in tops) <= 1.0001


def test_several_choices(client: OpenAI) -> None:
    ask = {"model": MODEL, "messages": CAPITAL, "n": 3, "max_tokens": 16}
    sampled = client.chat.completions.create(**ask, temperature=1.5, seed=7)
    assert [choice.index for choice in sampled.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in sampled.choices}) > 1
    again = client.chat.completions.create(**ask, temperature=1.5, seed=7)
    assert [c.message.content for c in again.choices] == [c.message.content for c in sampled.choices]
    greedy = client.chat.completions.create(**ask, temperature=0)
    assert len({choice.message.content for choice in greedy.choices}) == 1


def test_stop(client: OpenAI) -> None:
    ask = {"model": MODEL, "prompt": "One, two, three, four,", "temperature": 0, "max_tokens": 32}
    free = client.completions.create(**ask).choices[0].text
    stop = free[4:8]
    stopped = client.completions.create(**ask, stop=[stop]).choices[0]
    assert stopped.text == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"


def test_completions(client: OpenAI) -> None:
    ask = {"model": MODEL, "temperature": 0, "max_tokens": 5}
    prompts = ["The sky is", "Once upon a time"]
    together = client.completions.create(**ask, prompt=prompts)
    alone = [client.completions.create(**ask, prompt=prompt).choices[0].text for prompt in prompts]
    assert [choice.text for choice in together.choices] == alone
    streamed = ["", ""]
    for chunk in client.completions.create(**ask, prompt=prompts, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == alone


def test_a_text_is_scored(client: OpenAI) -> None:
    """Echo without output: the likely sentence has the better score."""

    def score(text: str) -> float:
        answer = client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=0)
        assert answer.choices[0].text == text
        assert answer.choices[0].logprobs.token_logprobs[0] is None
        return sum(answer.choices[0].logprobs.token_logprobs[1:])

    assert score("The capital of France is Paris.") > score("The capital of France is carrot.")


def test_vllm_extras(client: OpenAI) -> None:
    ask = {"model": MODEL, "prompt": "The sky is", "max_tokens": 6, "temperature": 1.0}
    one = {"top_k": 1, "return_token_ids": True, "ignore_eos": True, "prompt_logprobs": 1}
    choice = client.completions.create(**ask, extra_body=one).choices[0].model_dump()
    assert len(choice["token_ids"]) == 6
    assert len(choice["prompt_logprobs"]) == len(choice["prompt_token_ids"])
    greedy = client.completions.create(**(ask | {"temperature": 0}), extra_body={"ignore_eos": True})
    assert choice["text"] == greedy.choices[0].text
    allowed = choice["token_ids"][:1]
    limited = {"allowed_token_ids": allowed, "return_token_ids": True}
    assert client.completions.create(**ask, extra_body=limited).choices[0].model_dump()["token_ids"] == allowed * 6


def test_refusals(client: OpenAI, served: Served) -> None:
    ask = {"model": MODEL, "messages": CAPITAL, "max_tokens": 4}
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**ask, functions=[{"name": "f", "parameters": {}}])
    assert bad.value.param == "functions"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**ask, extra_body={"temprature": 1})
    assert bad.value.param == "temprature"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="word " * 3000)
    assert bad.value.code == "context_length_exceeded"
    impossible = {"allowed_token_ids": [COMMA], "bad_words": [","]}
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="One", max_tokens=3, extra_body=impossible)
    assert bad.value.code == "nothing_allowed"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**(ask | {"model": "gpt-5"}))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as wrong:
        OpenAI(base_url=f"{served.url}/v1", api_key="sk-wrong", max_retries=0).models.list()
    assert wrong.value.code == "invalid_api_key"


def test_many_at_once_answer_as_alone(client: OpenAI, served: Served) -> None:
    ask = {"model": MODEL, "temperature": 0, "max_tokens": 12}
    prompts = [f"{i} plus {i + 1} is" for i in range(12)]
    alone = [client.completions.create(**ask, prompt=prompt).choices[0].text for prompt in prompts]

    async def stream(client: AsyncOpenAI, prompt: str) -> str:
        chunks = await client.completions.create(**ask, prompt=prompt, stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
            return list(await asyncio.gather(*(stream(client, prompt) for prompt in prompts)))

    assert asyncio.run(together()) == alone


def test_embeddings_of_a_chat_model(client: OpenAI) -> None:
    """The client asks for base64 unless it is told otherwise, and makes floats of it."""
    texts = ["How do I reset my password?", "I forgot my password", "Rain in Spain"]
    answer = client.embeddings.create(model=MODEL, input=texts)
    floats = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    for item, other in zip(answer.data, floats.data, strict=True):
        assert item.embedding == pytest.approx(other.embedding, abs=1e-7)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert len(answer.data[0].embedding) == 576  # SmolLM2 135M's width
    assert math.isclose(sum(x * x for x in answer.data[0].embedding), 1, abs_tol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10
    (short,) = client.embeddings.create(model=MODEL, input=texts[0], dimensions=10).data
    assert len(short.embedding) == 10
