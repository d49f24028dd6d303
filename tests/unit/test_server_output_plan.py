"""What is planned for an answer: which grammar, which parsers, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from grammar_walk import accepts, small_tokenizer
from pagoda.config import ReasoningFormat, ToolCallFormat
from pagoda.errors import RequestError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.server.output_plan import OutputPlan, OutputPlanner
from pagoda.server.schema import ChatRequest
from pagoda.text.reasoning import FORMATS as REASONING
from pagoda.text.tools.table import FORMATS as TOOLS

TOKENIZER = small_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER)
HERMES = "{{ tools }}<tool_call></tool_call>"
THINKS = HERMES + "<think></think>"


def tool(name: str, strict: bool | None = None, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


ADD, LOG = tool("add", a={"type": "integer"}), tool("log", text={"type": "string"})
ODD = {"type": "array", "uniqueItems": True}  # which no grammar holds to


def plan(template: str = HERMES, prompt: str = "", **fields: Any) -> OutputPlan:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "?"}]} | fields)
    ids = TOKENIZER.encode(prompt, add_special=False, parse_special=True)
    return OutputPlanner(TOKENIZER, template).of_chat(body, ids)


def allows(made: OutputPlan, text: str) -> bool:
    assert made.grammar is not None
    return accepts(COMPILER.compile(made.grammar), TOKENIZER, text)


CALL_ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
CALL_LOG = '<tool_call>\n{"name": "log", "arguments": {"text": "x"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("fields", "allowed", "not_allowed"),
    [
        ({}, ["text", CALL_ADD, f"I see. {CALL_ADD}\n{CALL_LOG}"], ["<tool_call>no", CALL_ADD.replace("1", '"x"')]),
        ({"parallel_tool_calls": False}, ["text", CALL_ADD], [f"{CALL_ADD}\n{CALL_LOG}"]),
        ({"tool_choice": "required"}, [CALL_ADD, f"{CALL_ADD}\n{CALL_LOG}"], ["text", f"I see. {CALL_ADD}"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [CALL_LOG], [f"{CALL_ADD}\n{CALL_LOG}"]),
        ({"tool_choice": {"type": "function", "function": {"name": "log"}}}, [CALL_LOG], [CALL_ADD, "text"]),
        (
            {"response_format": {"type": "json_object"}},
            ["{}", CALL_ADD],
            ["text", f"{{}}{CALL_ADD}"],
        ),
    ],
)
def test_tools(fields: dict[str, Any], allowed: list[str], not_allowed: list[str]) -> None:
    made = plan(tools=[ADD, LOG], **fields)
    assert made.tool_format == "hermes"
    assert [text for text in allowed if not allows(made, text)] == []
    assert [text for text in not_allowed if allows(made, text)] == []


def test_no_tools_are_offered_when_none_may_be_called() -> None:
    assert plan(tools=[ADD], tool_choice="none") == OutputPlan()
    assert plan(tools=[], tool_choice="auto") == OutputPlan()


def test_a_schema_that_cannot_be_held_to() -> None:
    made = plan(tools=[tool("f", x=ODD)])
    assert not made.grammar_needed
    assert allows(made, '<tool_call>\n{"name": "f", "arguments": {"x": [1, 1], "y": 2}}\n</tool_call>')
    for fields in (
        {"tools": [tool("f", strict=True, x=ODD)]},
        {"tools": [tool("f", x=ODD)], "tool_choice": "required"},
    ):
        with pytest.raises(RequestError, match=r"properties\.x\.uniqueItems") as caught:
            plan(**fields)
        assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        ({"tools": [ADD], "guided_regex": "a"}, "guided_regex"),
        ({"thinking_token_budget": 3}, "thinking_token_budget"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan(**fields)
    assert caught.value.param == param


def test_thinking_is_told_by_the_template_and_the_end_of_the_prompt() -> None:
    assert plan(HERMES).reasoning is None
    assert plan(THINKS, "<|im_start|>assistant\n").reasoning == "think"
    assert not plan(THINKS, "<|im_start|>assistant\n").thinking_open
    assert plan(THINKS, "<|im_start|>assistant\n<think>\n").thinking_open
    assert plan(THINKS, "<|im_start|>assistant\n<think>\n\n</think>\n\n").reasoning is None
    asked = plan(THINKS, "", thinking_token_budget=7, include_reasoning=False)
    assert (asked.thinking_budget, asked.shows_reasoning) == (7, False)


def test_control_tokens_among_the_marks_are_shown_to_the_parsers() -> None:
    template = "{{ tools }}<|tool_call|>"
    assert plan(template, tools=[ADD]).shown_ids == frozenset()  # that vocabulary has no such token
    control = TOKENIZER.encode("<|im_start|>", add_special=False, parse_special=True)[0]
    planner = OutputPlanner(TOKENIZER, "")
    assert planner._marker("<|im_start|>") == f"<[{control}]>"
    assert planner._marker("<tool_call>") == '"<tool_call>"'


def test_formats_can_be_named() -> None:
    planner = OutputPlanner(TOKENIZER, THINKS, "mistral", "none")
    assert (planner.tools.name, planner.reasoning) == ("mistral", None)
    assert OutputPlanner(TOKENIZER, "", "auto", "think").reasoning is REASONING["think"]


def test_settings_name_every_format() -> None:
    assert set(get_args(ToolCallFormat)) == {"auto", *TOOLS}
    assert set(get_args(ReasoningFormat)) == {"auto", "none", *REASONING}


def test_a_template_without_tools_leaves_telling_of_them_to_us() -> None:
    assert OutputPlanner(TOKENIZER, "{{ messages }}").tells_of_tools
    assert not OutputPlanner(TOKENIZER, HERMES).tells_of_tools
    assert not OutputPlanner(TOKENIZER, "{% for t in tools %}{{ t }}{% endfor %}").tells_of_tools
