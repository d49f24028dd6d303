"""What is learned of a record: the assistant's words and the token that ends them, by the model's template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pagoda.errors import FormatError, UnsupportedError
from pagoda.finetune.data.records import Record
from pagoda.finetune.data.render import Example, Renderer
from pagoda.finetune.data.show import show
from pagoda.text.chat import ChatTemplate
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import VocabularyFile, bpe_metadata

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3's: what was thought before the last question is dropped.
FORGETFUL = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}")
USER = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(VocabularyFile(bpe_metadata()))


def examples(tokenizer: Tokenizer, *messages: Mapping[str, Any], source: str = CHATML) -> list[Example]:
    renderer = Renderer(tokenizer, ChatTemplate({"default": source}, tokenizer))
    return renderer.examples(Record("data:1", messages))


def marked(example: Example, tokenizer: Tokenizer) -> str:
    return show(example, tokenizer, colors=False).split("\n", 1)[1]


def test_the_answer_and_its_end_are_learned(tokenizer: Tokenizer) -> None:
    (example,) = examples(tokenizer, USER, HELLO)
    assert marked(example, tokenizer) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello<|im_end|>⟧\n")
    assert example.num_trained == len(tokenizer.encode("Hello", add_special=False)) + 1


def test_every_answer_of_a_conversation_is_learned_but_those_of_weight_0(tokenizer: Tokenizer) -> None:
    (example,) = examples(tokenizer, USER, HELLO, USER, {**HELLO, "weight": 0}, USER, {**HELLO, "content": "Bye"})
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert marked(example, tokenizer) == (f"{turn}⟦Hello<|im_end|>⟧\n{turn}Hello<|im_end|>\n{turn}⟦Bye<|im_end|>⟧\n")


def test_ids_are_those_that_a_server_sees(tokenizer: Tokenizer) -> None:
    """What stands before an answer are the ids of the prompt that is made of the messages before it."""
    (example,) = examples(tokenizer, USER, HELLO)
    prompt = ChatTemplate({"default": CHATML}, tokenizer).render_ids([USER])
    assert example.ids[: len(prompt)].tolist() == prompt
    assert not example.trained[: len(prompt)].any()
    assert example.trained[len(prompt)]


def test_calls_are_learned(tokenizer: Tokenizer) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    (example,) = examples(tokenizer, USER, {"role": "assistant", "content": None, "tool_calls": [call]})
    assert "⟦<call>add" in marked(example, tokenizer)


def test_a_template_that_changes_earlier_turns_gives_an_example_for_each_answer(tokenizer: Tokenizer) -> None:
    first, second = {**HELLO, "content": "hm</think>A"}, {**HELLO, "content": "oh</think>B"}
    found = [marked(e, tokenizer) for e in examples(tokenizer, USER, first, USER, second, source=FORGETFUL)]
    assert "⟦hm</think>A<|im_end|>⟧" in found[0]
    assert "\nA<|im_end|>" in found[1]
    assert "⟦oh</think>B<|im_end|>⟧" in found[1]
    assert len(found) == 2


def test_empty_answers_are_not_learned(tokenizer: Tokenizer) -> None:
    assert examples(tokenizer, USER, {"role": "assistant", "content": " "}) == []


def test_templates_that_loss_cannot_use(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnsupportedError, match="would never stop"):
        examples(tokenizer, USER, HELLO, source=CHATML.replace("<|im_end|>", ""))
    with pytest.raises(UnsupportedError, match=r"leaves out or changes messages\[1\]"):
        examples(tokenizer, USER, HELLO, source=CHATML.replace("{{ m.content }}", ""))
    with pytest.raises(FormatError, match="data:1: the model's chat template refuses this: no"):
        examples(tokenizer, USER, HELLO, source="{{ raise_exception('no') }}")
    with pytest.raises(UnsupportedError, match="no chat template"):
        Renderer(tokenizer, None, "it has none").examples(Record("data:1", (USER, HELLO)))


def test_prompt_and_completion(tokenizer: Tokenizer) -> None:
    renderer = Renderer(tokenizer, None)
    (pair,) = renderer.examples(Record("data:1", prompt="Hi", trained=" there"))
    assert marked(pair, tokenizer) == "Hi⟦ there<|im_end|>⟧"


def test_of_a_text_all_but_its_first_token_is_learned(tokenizer: Tokenizer) -> None:
    (text,) = Renderer(tokenizer, None).examples(Record("data:1", trained="Hello"))
    assert text.ids.tolist() == [*tokenizer.encode("Hello", add_special=False), tokenizer.eos_id]
    assert text.trained.tolist() == [False, *[True] * (len(text) - 1)]
