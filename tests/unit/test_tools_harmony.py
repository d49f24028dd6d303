"""gpt-oss's messages where its marks are control tokens: what is planned, what the grammar allows, and what is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grammar_walk import allowed_ids
from pagoda.errors import RequestError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.server.output_parser import OutputParser
from pagoda.server.output_plan import OutputPlan, OutputPlanner
from pagoda.server.schema import ChatRequest
from pagoda.text.chat import ChatTemplate
from pagoda.text.harmony import MARKERS
from pagoda.text.tokenizer import load_tokenizer
from tokenizer_files import CONTROL, VocabularyFile, bpe_metadata

ENDS = ("<|return|>", "<|call|>")
TEMPLATE = (
    "{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}"
    "{{ '<|channel|>analysis<|message|>' + message.thinking }}"
)
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


def harmony_tokenizer() -> Any:
    metadata = bpe_metadata(size=1500)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    metadata["tokenizer.ggml.tokens"] = [*tokens, *MARKERS, *ENDS]
    metadata["tokenizer.ggml.token_type"] = [*types, *[CONTROL] * (len(MARKERS) + len(ENDS))]
    metadata["tokenizer.ggml.eos_token_id"] = len(tokens) + len(MARKERS)
    return load_tokenizer(VocabularyFile(metadata))


TOKENIZER = harmony_tokenizer()
PLANNER = OutputPlanner(TOKENIZER, TEMPLATE)
ANALYSIS = "<|channel|>analysis<|message|>So.<|end|><|start|>assistant"


def plan(**fields: Any) -> OutputPlan:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hi"}], **fields})
    return PLANNER.of_chat(body, TOKENIZER.encode("<|start|>assistant", parse_special=True))


def allows(made: OutputPlan, text: str) -> bool:
    """Whether the plan's grammar allows the text, and that it ends there."""
    assert made.grammar is not None
    constraint = GrammarCompiler(TOKENIZER).compile(made.grammar).start()
    for token_id in TOKENIZER.encode(text, add_special=False, parse_special=True):
        if token_id not in allowed_ids(constraint, TOKENIZER.vocab_size):
            return False
        constraint.accept(token_id)
    return any(i in TOKENIZER.eos_ids for i in allowed_ids(constraint, TOKENIZER.vocab_size))


CALLS = (
    '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}',
    '<|channel|>commentary to=functions.add json<|message|>{"a": 1}',
    ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}',
)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_are_held_to_their_schemas(choice: str) -> None:
    made = plan(tools=[ADD], tool_choice=choice)
    assert all(allows(made, text) and allows(made, ANALYSIS + text) for text in CALLS)
    assert not any(allows(made, text.replace("1}", '"1"}')) for text in CALLS)
    assert allows(made, f"{ANALYSIS}<|channel|>final<|message|>It is 3.") == (choice == "auto")


def test_all_of_an_answer_is_told_apart() -> None:
    parser = OutputParser(plan(tools=[ADD]))
    preamble = "<|channel|>commentary<|message|>I add.<|end|><|start|>assistant"
    parsed = parser.push(ANALYSIS + preamble + CALLS[0], 20, last=True)
    assert (parsed.thought, parsed.content) == ("So.", "I add.")
    (call,) = parsed.calls
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})
    parsed = OutputParser(plan()).push(f"{ANALYSIS}<|channel|>final<|message|>It is 3.", 9, last=True)
    assert (parsed.thought, parsed.content, parsed.calls) == ("So.", "It is 3.", [])


def test_reasoning_tokens_are_counted() -> None:
    parser = OutputParser(plan())
    for piece in (
        "<|channel|>",
        "analysis",
        "<|message|>",
        "So",
        ".",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
    ):
        parser.push(piece, 1, last=False)
    assert parser.num_thoughts == 4
    assert parser.push("final<|message|>Yes", 3, last=True).content == "Yes"


def test_the_marks_are_shown_to_the_parser() -> None:
    shown = {TOKENIZER.decode([i], skip_special=False) for i in plan(tools=[ADD]).shown_ids}
    assert shown == set(MARKERS)


def test_a_budget_of_thinking_excludes_tools() -> None:
    with pytest.raises(RequestError, match="exclude each other"):
        plan(tools=[ADD], thinking_token_budget=10)
    assert plan(thinking_token_budget=10).thinking_budget == 10


def test_messages_reach_the_template_in_its_words() -> None:
    """Thoughts are `thinking` there, beside a call what was said too; and tools have a description, be it empty."""
    source = (
        "{%- for tool in tools or [] %}{{ '// ' + tool.function.description }}{% endfor %}"
        "{%- for message in messages %}{% if message.thinking %}"
        "{{- '<|channel|>analysis<|message|>' + message.thinking + '|' + message.content }}"
        "{%- endif %}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    thought = {"role": "assistant", "content": "I add.", "reasoning_content": "So."}
    template = ChatTemplate({"default": source}, TOKENIZER)
    assert template.render([{**thought, "tool_calls": [call]}], tools=[ADD]) == (
        "// <|channel|>analysis<|message|>So.\n\nI add.|"
    )
    assert template.render([thought]) == "<|channel|>analysis<|message|>So.|I add."
