"""`LLM` with the real default model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagoda import LLM, GrammarSource, SamplingParams
from pagoda.errors import ConfigError, ContextLengthError, RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def llm(default_model: Path) -> Iterator[LLM]:
    with LLM(str(default_model), max_num_seqs=4, max_context=512) as llm:
        yield llm


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    (answer,) = llm.generate("The capital of France is", GREEDY)
    assert answer.text.startswith(" Paris")
    assert len(answer.token_ids) == 8
    assert answer.outputs[0].finish_reason == "length"
    assert answer.text == llm.loaded.tokenizer.decode(answer.token_ids)


def test_texts_and_token_ids_are_the_same_prompts(llm: LLM) -> None:
    texts = ["Once upon a time", "def main():"]
    from_text = llm.generate(texts, GREEDY)
    from_ids = llm.generate([llm.tokenize(text) for text in texts], GREEDY)
    one = llm.generate(llm.tokenize(texts[1]), GREEDY)
    assert [output.text for output in from_text] == [output.text for output in from_ids]
    assert one[0].text == from_text[1].text
    assert [output.prompt for output in from_text] == texts
    assert from_ids[0].prompt is None


def test_control_tokens_of_a_text_are_tokens(llm: LLM) -> None:
    rendered = llm.loaded.chat_template.render([{"role": "user", "content": "Hi"}])  # type: ignore[union-attr]
    assert llm.tokenize(rendered) == llm.loaded.chat_template.render_ids([{"role": "user", "content": "Hi"}])  # type: ignore[union-attr]


def test_more_prompts_than_slots_come_back_in_order(llm: LLM) -> None:
    prompts = [f"{i} plus {i} is" for i in range(10)]
    each = [SamplingParams(temperature=0, max_tokens=1 + i % 4) for i in range(10)]
    outputs = llm.generate(prompts, each, progress=True)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.token_ids) for output in outputs] == [p.max_tokens for p in each]


def test_chat_answers_and_ends_its_turn(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is 2+2? Answer with one word."}]
    (answer,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=100))
    assert answer.outputs[0].finish_reason == "stop"
    assert answer.text
    assert "<|im_end|>" not in answer.text
    several = llm.chat([messages, messages], SamplingParams(temperature=0, max_tokens=100))
    assert [output.text for output in several] == [answer.text] * 2


def test_calls_are_found(llm: LLM) -> None:
    """What is called is forced here: the default model is too small to decide."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    grammar = GrammarSource("choice", json.dumps([call]))
    (answer,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=64), tools=tools, grammar=grammar)
    (found,) = answer.outputs[0].tool_calls
    assert (found.name, json.loads(found.arguments), answer.text) == ("get_weather", {"city": "Oslo"}, "")
    assert "get_weather" in llm.loaded.tokenizer.decode(answer.prompt_token_ids)


def test_a_stop_string_ends_it(llm: LLM) -> None:
    (answer,) = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8, stop=("ris",)))
    assert (answer.text, answer.outputs[0].finish_reason, answer.outputs[0].stop_reason) == (" Pa", "stop", "ris")


def test_choices_logprobs_and_usage(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=12, logprobs=2, prompt_logprobs=1)
    (output,) = llm.generate("My favourite colour is", params)
    assert len({choice.token_ids for choice in output.outputs}) > 1
    for index, choice in enumerate(output.outputs):
        assert choice.index == index
        assert choice.logprobs is not None
        assert [entry.chosen.token_id for entry in choice.logprobs] == list(choice.token_ids)
        assert all(entry.chosen.logprob <= entry.top[0].logprob <= 0 for entry in choice.logprobs)
        assert choice.usage.completion_tokens == len(choice.token_ids)
        assert choice.usage.prompt_tokens == len(output.prompt_token_ids)
    assert output.prompt_logprobs is not None
    assert [entry.chosen.token_id for entry in output.prompt_logprobs[1:] if entry] == list(output.prompt_token_ids[1:])


def test_a_seed_decides(llm: LLM) -> None:
    def sample(seed: int) -> tuple[int, ...]:
        return llm.generate("It was a dark and", SamplingParams(seed=seed, max_tokens=12))[0].token_ids

    assert sample(1) == sample(1) != sample(2)


def test_the_second_question_finds_the_prefix(llm: LLM) -> None:
    text = "A long beginning that two questions share. " * 10
    llm.generate(text + "First?", GREEDY)
    usage = llm.generate(text + "Second?", GREEDY)[0].outputs[0].usage
    assert usage.cached_tokens >= len(llm.tokenize(text)) // 16 * 16 - 16


def test_one_bad_prompt_refuses_all_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="512 tokens"):
        llm.generate(["fine", "word " * 600], GREEDY)
    with pytest.raises(RequestError, match="2 prompts, but 1"):
        llm.generate(["a", "b"], [GREEDY])
    assert not llm.loaded.core.has_work


def test_an_interruption_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    core = llm.loaded.core
    step = core.step

    def interrupted() -> object:
        monkeypatch.setattr(core, "step", step)
        step()
        raise KeyboardInterrupt

    monkeypatch.setattr(core, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["One", "Two"], SamplingParams(n=2, max_tokens=50))
    assert not core.has_work
    assert core.kv.num_used_blocks == 0
    assert llm.generate("The capital of France is", GREEDY)[0].text.startswith(" Paris")


def test_a_context_that_the_model_has_not_is_refused(default_model: Path) -> None:
    with pytest.raises(ConfigError, match="8192"):
        LLM(str(default_model), max_context=9000)


def test_an_unknown_setting_is_refused(default_model: Path) -> None:
    with pytest.raises(TypeError, match="max_seqs"):
        LLM(str(default_model), max_seqs=3)


def test_outputs_obey_their_grammars(llm: LLM) -> None:
    choice, number = GrammarSource("choice", '["red", "green"]'), GrammarSource("regex", "[1-9][0-9]{2}")
    prompts = ["The sky is", "Seven times eight is", "The capital of France is"]
    params = SamplingParams(temperature=0, max_tokens=8)
    outputs = llm.generate(prompts, params, grammar=[choice, number, None])
    assert outputs[0].text in ("red", "green")
    assert re.fullmatch("[1-9][0-9]{2}", outputs[1].text)
    assert outputs[2].text.startswith(" Paris")
    chat = llm.chat([{"role": "user", "content": "Red or green?"}], params, grammar=choice)
    assert chat[0].text in ("red", "green")
    with pytest.raises(RequestError, match="3 prompts, but 1"):
        llm.generate(prompts, params, grammar=[choice])
    with pytest.raises(RequestError, match="minLenght"):
        llm.generate("A", params, grammar=GrammarSource("json_schema", '{"type": "string", "minLenght": 2}'))
