"""llama-server's /completion, /infill, /apply-template, /props and /slots, in the shapes that its 0.5.0-dev sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fake_engine import FakeLoaded, FakeTokenizer, expected_text
from serving import Served, serving

PARTIAL = {"index", "content", "tokens", "stop", "id_slot", "tokens_predicted", "tokens_evaluated"}
FINAL = PARTIAL | {
    "model", "generation_settings", "prompt", "has_new_line", "truncated", "stop_type", "stopping_word",
    "tokens_cached", "timings",
}  # fmt: skip
MARKS = {"<|fim_prefix|>": 258, "<|fim_suffix|>": 259, "<|fim_middle|>": 260, "<|repo_name|>": 261, "<|file_sep|>": 262}


class FimTokenizer(FakeTokenizer):
    """Bytes, and Qwen-Coder's tokens for filling in the middle."""

    vocab_size = 263

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        if parse_special and text in MARKS:
            return [MARKS[str(text)]]
        return super().encode(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token_id: int) -> bytes:
        names = {number: name.encode() for name, number in MARKS.items()}
        return names[token_id] if token_id in names else super().token_bytes(token_id)


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded()) as served:
        yield served


def follow(response: httpx.Response) -> list[dict[str, Any]]:
    """Events as llama-server sends them: chunks with stop false, one with stop true a choice, and no [DONE]."""
    assert response.status_code == 200, response.text
    parts = response.text.removesuffix("\n\n").split("\n\n")
    chunks = [json.loads(part.removeprefix("data: ")) for part in parts]
    stopped: set[int] = set()
    for chunk in chunks:
        assert set(chunk) >= (FINAL if chunk["stop"] else PARTIAL)
        assert chunk["index"] not in stopped
        stopped |= {chunk["index"]} if chunk["stop"] else set()
    assert stopped == {chunk["index"] for chunk in chunks}
    return chunks


def test_a_prompt_is_continued(api: Served) -> None:
    whole = api.ok("/completion", prompt="abc", n_predict=5, return_tokens=True)
    assert set(whole) == FINAL
    assert whole["content"] == expected_text("abc", 5)
    assert whole["tokens"] == [256, *b"abc", 256]
    assert (whole["tokens_predicted"], whole["tokens_evaluated"]) == (5, 4)
    assert (whole["stop"], whole["stop_type"], whole["stopping_word"]) == (True, "limit", "")
    timings = whole["timings"]
    assert (timings["prompt_n"], timings["predicted_n"], timings["cache_n"]) == (4, 5, 0)
    chunks = follow(api.post("/completion", prompt="abc", n_predict=5, stream=True, timings_per_token=True))
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert all("timings" in chunk for chunk in chunks)
    assert chunks[-1]["tokens_predicted"] == 5


def test_several_prompts_are_continued(api: Served) -> None:
    results = api.ok("/completions", prompt=["ab", "cd"], n_predict=3)
    assert [result["content"] for result in results] == [expected_text("ab", 3), expected_text("cd", 3)]
    chunks = follow(api.post("/completion", prompt=["ab", "cd"], n_predict=3, stream=True))
    assert {chunk["index"] for chunk in chunks} == {0, 1}


def test_words_stop_an_answer(api: Served) -> None:
    for stream in (False, True):
        response = api.post("/completion", prompt="a\nbc", n_predict=9, stop=["b"], stream=stream)
        last = follow(response)[-1] if stream else response.json()
        assert (last["stop_type"], last["stopping_word"], last["has_new_line"]) == ("word", "b", True)


def test_without_a_limit_the_context_is_filled(api: Served) -> None:
    assert api.ok("/completion", prompt="abc", n_predict=100_000)["stop_type"] == "limit"
    assert api.ok("/completion", prompt="abc")["stop_type"] == "limit"


def test_probabilities(api: Served) -> None:
    for stream in (False, True):
        response = api.post("/completion", prompt="ab", n_predict=2, n_probs=2, stream=stream)
        found = (
            [entry for chunk in follow(response) for entry in chunk.get("completion_probabilities", ())]
            if stream
            else response.json()["completion_probabilities"]
        )
        assert [entry["id"] for entry in found] == [256, ord("a")]
        assert found[1] == {
            "id": 97, "token": "a", "bytes": [97], "logprob": -0.5,
            "top_logprobs": [
                {"id": 97, "token": "a", "bytes": [97], "logprob": -0.5},
                {"id": 98, "token": "b", "bytes": [98], "logprob": -1.0},
            ],
        }  # fmt: skip


def test_tokens_are_biased(api: Served) -> None:
    """The fake engine looks at no bias; what the request to it says is checked."""
    seen = []
    validate = api.loaded.engine.validate
    api.loaded.engine.validate = lambda request: seen.append(request) or validate(request)
    api.ok("/completion", prompt="ab", n_predict=1, logit_bias=[[97, 1.5], [98, False]], seed=-1)
    api.loaded.engine.validate = validate
    assert (seen[0].params.logit_bias, seen[0].params.seed) == ({97: 1.5, 98: -100.0}, None)


def test_samplers_that_are_not_named_are_off(api: Served) -> None:
    asked = {"prompt": "ab", "n_predict": 1, "top_k": 5, "top_p": 0.5, "temperature": 0.3}
    settings = api.ok("/completion", **asked, samplers=["top_k", "temperature"])["generation_settings"]
    assert settings["samplers"] == ["top_k", "temperature"]


def test_fields_can_be_chosen(api: Served) -> None:
    fields = ["content", "generation_settings/n_predict", "nothing"]
    result = api.ok("/completion", prompt="ab", n_predict=2, response_fields=fields)
    assert result == {"content": "a", "n_predict": 2}


def test_progress_of_a_prompt_comes_first(api: Served) -> None:
    chunks = follow(api.post("/completion", prompt="ab", n_predict=2, stream=True, return_progress=True))
    assert chunks[0]["prompt_progress"] == {"total": 3, "cache": 1, "processed": 2, "time_ms": 250}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"lora": [{"id": 0, "scale": 1.0}]}, "lora"),
        ({"repeat_last_n": 64}, "repeat_last_n"),
        ({"samplers": ["magic"]}, "samplers[0]"),
        ({"n_predict": -2}, "n_predict"),
        ({"logit_bias": [[97, 1000.0]]}, None),
        ({"post_sampling_probs": True}, "post_sampling_probs"),
    ],
)
def test_what_is_refused(api: Served, fields: dict[str, Any], param: str | None) -> None:
    assert api.refused("/completion", **{"prompt": "a"} | fields)["param"] == param


def test_models_without_marks_fill_nothing_in(api: Served) -> None:
    assert api.refused("/infill", input_prefix="a", input_suffix="b")["param"] == "suffix"
    assert api.refused("/v1/completions", prompt="a", suffix="b")["param"] == "suffix"
    assert api.ok("/v1/completions", prompt="a", suffix="", max_tokens=1)


def test_the_middle_is_asked_for() -> None:
    """The order of the parts is llama-server's `format_prompt_infill`; its answer for a Qwen-Coder shows the first."""
    with serving(FakeLoaded(tokenizer=FimTokenizer())) as served:
        served.loaded.engine.validate = lambda request: seen.append(request.prompt_token_ids) or request
        seen: list[tuple[int, ...]] = []
        asked = {"input_prefix": "def f(", "input_suffix": "): pass", "n_predict": 1}
        served.ok("/infill", **asked)
        served.ok("/infill", **asked, prompt="x", input_extra=[{"filename": "a.py", "text": "<|fim_middle|>"}])
        served.ok("/v1/completions", prompt="def f(", suffix="): pass", max_tokens=1)
        parts = [258, *b"def f(", 259, *b"): pass", 260]
        assert seen[0] == seen[2] == (256, *parts)
        files = [261, *b"myproject\n", 262, *b"a.py\n", *b"<|fim_middle|>", 262, *b"filename\n"]
        assert seen[1] == (256, *files, 258, *b"def f(x", 259, *b"): pass", 260)
        assert served.refused("/infill", input_prefix="a" * 600, input_suffix="")["code"] == "context_length_exceeded"
        assert served.refused("/v1/completions", prompt=["a", "b"], suffix="c")["param"] == "suffix"


def test_templates_are_applied(api: Served) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert api.ok("/apply-template", messages=messages) == {"prompt": "user: hi\n> "}


def test_properties_and_slots() -> None:

    with serving(FakeLoaded()) as served:
        props = served.client.get("/props").json()
        assert props["default_generation_settings"]["n_ctx"] == 512
        assert props["chat_template"] == "{{ messages }}"
        slots = served.client.get("/slots").json()
        assert [slot["id"] for slot in slots] == list(range(props["total_slots"]))
        assert not any(slot["is_processing"] for slot in slots)


def test_timings_in_openais_answers(api: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert "timings" not in api.ok("/v1/chat/completions", **body)
    timings = api.ok("/v1/chat/completions", **body, timings_per_token=True)["timings"]
    assert (timings["prompt_n"], timings["predicted_n"]) == (11, 3)
    lines = api.post("/v1/chat/completions", **body, timings_per_token=True, stream=True).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert [chunk["timings"]["predicted_n"] for chunk in chunks if chunk["choices"][0]["delta"].get("content")] == [
        1,
        2,
        3,
    ]
