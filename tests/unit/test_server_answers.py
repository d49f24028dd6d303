"""Answers of the API, over HTTP, from an engine that says the prompt back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fake_engine import BOS, FakeLoaded, expected_text
from serving import Served, events, serving

HELLO = [{"role": "user", "content": "Hi"}]
RENDERED = "user: Hi\n> "


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded()) as served:
        yield served


def test_chat(api: Served) -> None:
    answer = api.ok("/v1/chat/completions", model="fake", messages=HELLO, max_tokens=5)
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "fake")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": RENDERED[:5], "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert answer["usage"] == {
        "prompt_tokens": len(RENDERED),
        "completion_tokens": 5,
        "total_tokens": len(RENDERED) + 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_chat_stream_says_the_same(api: Served) -> None:
    response = api.post("/v1/chat/completions", messages=HELLO, max_tokens=9, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    assert chunks[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == RENDERED[:9]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 9 + ["length"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)


def test_stream_usage(api: Served) -> None:
    *chunks, last = events(
        api.post("/v1/completions", prompt="abc", max_tokens=4, stream=True, stream_options={"include_usage": True})
    )
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (4, 4)


def test_continuous_usage(api: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(api.post("/v1/completions", prompt="abc", max_tokens=4, stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 4]


def test_chat_parts_and_developer_role(api: Served) -> None:
    messages = [
        {"role": "developer", "content": "Be"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": None, "refusal": None},
    ]
    tokens = api.ok("/tokenize", messages=messages)["tokens"]
    assert bytes(tokens).decode() == "system: Be\nuser: a+b\nassistant: \n> "


def test_continue_final_message(api: Served) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    tokens = api.ok("/tokenize", messages=messages, continue_final_message=True)["tokens"]
    assert bytes(tokens).decode() == "user: Hi\nassistant: Well"


def test_completion_is_echoed(api: Served) -> None:
    answer = api.ok("/v1/completions", prompt="abc", max_tokens=6, echo=True)
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "abc" + expected_text("abc", 6)


def test_whole_numbers_may_have_a_point(api: Served) -> None:
    assert api.ok("/v1/completions", prompt="abc", max_tokens=3.0, n=1.0)["usage"]["completion_tokens"] == 3
    assert api.refused("/v1/completions", prompt="abc", max_tokens=3.5)["param"] == "max_tokens"


def test_completion_defaults_to_16_tokens(api: Served) -> None:
    assert api.ok("/v1/completions", prompt="abc")["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["abc", "xyz"], ["abc", "xyz"]),
        ([97, 98, 99], ["abc"]),
        ([[97, 98, 99], [120, 121, 122]], ["abc", "xyz"]),
    ],
)
def test_prompt_forms(api: Served, prompt: object, texts: list[str]) -> None:
    answer = api.ok("/v1/completions", prompt=prompt, max_tokens=3, n=2, add_special_tokens=False)
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(texts)))
    expected = [expected_text(text, 3, choice=c, bos=False) for text in texts for c in range(2)]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert answer["usage"]["prompt_tokens"] == 3 * len(texts)
    assert answer["usage"]["completion_tokens"] == 6 * len(texts)


def test_a_long_prompt_of_ids_is_one_prompt(api: Served) -> None:
    assert len(api.ok("/v1/completions", prompt=[97] * 400, max_tokens=1, n=3)["choices"]) == 3


def test_streamed_choices_keep_apart(api: Served) -> None:
    chunks = events(api.post("/v1/completions", prompt=["abc", "xyz"], max_tokens=5, n=2, stream=True))
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {
        0: expected_text("abc", 5),
        1: expected_text("abc", 5, choice=1),
        2: expected_text("xyz", 5),
        3: expected_text("xyz", 5, choice=1),
    }


def test_characters_are_not_split(api: Served) -> None:
    chunks = events(api.post("/v1/completions", prompt="é€😀", max_tokens=20, stream=True, add_special_tokens=False))
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces) == "é€😀" * 2 + "é"
    assert all("\ufffd" not in piece for piece in pieces)


def test_chat_logprobs(api: Served) -> None:
    answer = api.ok("/v1/chat/completions", messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["u", "s"]
    assert content[0]["bytes"] == [117]
    assert [(top["token"], top["logprob"]) for top in content[0]["top_logprobs"]] == [("u", -0.5), ("v", -1.0)]


def test_completion_logprobs(api: Served) -> None:
    logprobs = api.ok("/v1/completions", prompt="abc", max_tokens=4, logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["<bos>", "a", "b", "c"]
    assert logprobs["text_offset"] == [0, 0, 1, 2]  # the text leaves <bos> out
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["top_logprobs"][1] == {"a": -0.5, "b": -1.0}


def test_echoed_logprobs_without_output(api: Served) -> None:
    """How evaluation harnesses score a text: echo, logprobs, no tokens."""
    answer = api.ok("/v1/completions", prompt="abc", max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer["choices"]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == ["<bos>", "a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == 4


def test_streamed_logprobs_line_up(api: Served) -> None:
    chunks = events(api.post("/v1/completions", prompt="abc", max_tokens=3, echo=True, logprobs=1, stream=True))
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [token for part in parts for token in part["tokens"]] == ["<bos>", "a", "b", "c", "<bos>", "a", "b"]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 0, 1, 2, 3, 3, 4]


def test_best_of(api: Served) -> None:
    """The engine says that later choices are likelier."""
    answer = api.ok("/v1/completions", prompt=["abc", "xyz"], max_tokens=4, best_of=3, n=2)
    assert [choice["text"] for choice in answer["choices"]] == [
        expected_text(text, 4, choice=choice) for text in ("abc", "xyz") for choice in (2, 1)
    ]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 2 * 3 * 4  # all that were made
    chat = api.ok("/v1/chat/completions", messages=HELLO, max_tokens=2, best_of=2)
    assert [choice["message"]["content"] for choice in chat["choices"]] == [RENDERED[1:3]]
    body = {"prompt": "abc", "max_tokens": 2}
    assert api.refused("/v1/completions", **body, best_of=1, n=2)["param"] == "best_of"
    assert api.refused("/v1/completions", **body, best_of=2, stream=True)["param"] == "best_of"
    api.ok("/v1/completions", **body, best_of=2, n=2)


def test_tokens_as_ids(api: Served) -> None:
    body = {"prompt": "abc", "max_tokens": 2, "logprobs": 1, "return_tokens_as_token_ids": True}
    assert api.ok("/v1/completions", **body)["choices"][0]["logprobs"]["tokens"] == ["token_id:256", "token_id:97"]


def test_prompt_logprobs_and_token_ids(api: Served) -> None:
    asked = {"max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": True}
    choice = api.ok("/v1/completions", prompt="ab", **asked)["choices"][0]
    assert choice["prompt_token_ids"] == [BOS, 97, 98]
    assert choice["token_ids"] == [BOS, 97]
    assert choice["prompt_logprobs"] == [
        None,
        {"97": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}},
        {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}},
    ]
    answer = api.ok("/v1/chat/completions", messages=HELLO, **asked)
    assert answer["prompt_token_ids"] == list(RENDERED.encode())
    assert len(answer["prompt_logprobs"]) == len(RENDERED)
    assert answer["choices"][0]["token_ids"] == list(b"us")


def test_streamed_token_ids(api: Served) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "stream": True, "return_token_ids": True}
    chunks = events(api.post("/v1/chat/completions", **body))
    assert chunks[0]["prompt_token_ids"] == list(RENDERED.encode())
    assert [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", [])] == list(b"use")


def test_stop(api: Served) -> None:
    choice = api.ok("/v1/completions", prompt="abc", stop=["c"])["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", "c")
    choice = api.ok("/v1/completions", prompt="abc", stop_token_ids=[98])["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 98)


def test_truncation_keeps_the_end(api: Served) -> None:
    choice = api.ok("/v1/completions", prompt="abcdef", truncate_prompt_tokens=2, max_tokens=4, echo=True)["choices"][0]
    assert choice["text"] == "ef" + "efef"
    answer = api.ok("/v1/completions", prompt="x" * 600, truncate_prompt_tokens=-1, max_tokens=12)
    assert answer["usage"]["prompt_tokens"] == 500


def test_control_tokens_of_a_prompt_are_tokens(api: Served) -> None:
    assert api.ok("/tokenize", prompt="a<eos>b")["tokens"] == [256, 97, 257, 98]
    answer = api.ok("/v1/completions", prompt="a<eos>b", max_tokens=1, return_token_ids=True)
    assert answer["choices"][0]["prompt_token_ids"] == [256, 97, 257, 98]


def test_tokens_and_back(api: Served) -> None:
    answer = api.ok("/tokenize", prompt="héy", return_token_strs=True)
    assert answer["tokens"] == [BOS, *"héy".encode()]
    assert (answer["count"], answer["max_model_len"]) == (5, 512)
    assert answer["token_strs"] == ["<bos>", "h", "\ufffd", "\ufffd", "y"]
    assert api.ok("/detokenize", tokens=answer["tokens"]) == dict.fromkeys(("prompt", "content"), "<bos>héy")


def test_tokenize_as_llama_server_is_asked(api: Served) -> None:
    """Its answers to the same, but for the vocabulary: server-context.cpp's post_tokenize."""
    assert api.ok("/tokenize", content="a<eos>") == {"tokens": [97, 257]}
    assert api.ok("/tokenize", content="a", add_special=True) == {"tokens": [256, 97]}
    assert api.ok("/tokenize", content="<eos>", parse_special=False) == {"tokens": list(b"<eos>")}
    assert api.ok("/tokenize", content=["a", 7, "b"], add_special=True) == {"tokens": [256, 97, 7, 98]}
    pieces = [{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
    assert api.ok("/tokenize", content="hé", with_pieces=True) == {"tokens": pieces}
    assert api.ok("/tokenize", content="") == {"tokens": []}
    assert "vocabulary" in api.refused("/tokenize", content=["a", 10**6])["message"]
    assert "return_token_strs" in api.refused("/tokenize", content="a", return_token_strs=True)["message"]


def test_long_prompts_are_read_off_the_loop(api: Served) -> None:
    assert api.ok("/tokenize", prompt="x" * 20_000)["count"] == 20_001


def test_models(api: Served) -> None:
    (card,) = api.client.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("fake", "model", 512)
    assert api.client.get("/v1/models/fake").json() == card


def test_chat_template_kwargs_arrive(api: Served) -> None:
    error = api.refused("/v1/chat/completions", messages=HELLO, chat_template_kwargs={"fail": True})
    assert error["message"] == "the template says no"


def test_params_reach_the_engine(api: Served) -> None:
    seen = []
    submit = api.loaded.engine.submit
    api.loaded.engine.submit = lambda request, sink: (seen.append(request), submit(request, sink))
    body = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 11, "logit_bias": {"97": 2.5},
            "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "min_tokens": 2,
            "bad_words": ["bad"], "allowed_token_ids": [97, 98], "ignore_eos": True, "skip_special_tokens": False,
            "include_stop_str_in_output": True, "stop": "zzz", "stop_token_ids": [5]}  # fmt: skip
    try:
        api.ok("/v1/completions", prompt="abc", max_tokens=3, priority=-2, cache_salt="s", user="me", **body)
    finally:
        del api.loaded.engine.submit
    (request,) = seen
    assert (request.priority, request.cache_salt, request.prompt_token_ids) == (-2, "s", (BOS, 97, 98, 99))
    params = request.params
    given = {name: getattr(params, name) for name in body}
    expected = body | {"logit_bias": {97: 2.5}, "bad_words": ("bad",), "allowed_token_ids": (97, 98),
                       "stop": ("zzz",), "stop_token_ids": (5,)}  # fmt: skip
    assert given == expected
    assert params.max_tokens == 3
