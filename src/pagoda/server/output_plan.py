"""What is to become of a model's text: the grammar it obeys, and how its thinking and its calls are told from it.

A plan is made where a body is read, from values alone, and can be pickled. The grammar is compiled later
(`constraints.py`), and the text parsed as it comes (`output_parser.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pagoda.errors import RequestError
from pagoda.grammar.json_schema import prepare_schema
from pagoda.grammar.lark import inline_schema, literal
from pagoda.grammar.source import GrammarSource
from pagoda.server.schema import ChatRequest
from pagoda.server.schema_output import NamedTool, Structured, Tool
from pagoda.server.structured import grammar_asked
from pagoda.text import reasoning
from pagoda.text.reasoning import ReasoningFormat
from pagoda.text.tools.base import CallGrammar, Function, ToolFormat
from pagoda.text.tools.offered import control_ids
from pagoda.text.tools.table import FORMATS, GENERIC, format_of

TAIL_TOKENS = 64  # of a prompt, in which its last mark of thinking is looked for


class PlanTokenizer(Protocol):
    """What planning needs of a tokenizer."""

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def is_special(self, token_id: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Names are those of tables: `pagoda.text.reasoning.FORMATS` and `pagoda.text.tools.table.FORMATS`."""

    grammar: GrammarSource | None = None  # of the answer, once any thinking is over
    grammar_param: str | None = None  # the field that asks for it
    grammar_needed: bool = True  # False: it only makes calls surer, and is left out where it does not compile
    grammar_thinks: bool = False  # whether the grammar holds the thinking, too
    reasoning: str | None = None  # None: the answer holds no thinking
    thinking_open: bool = False  # the prompt has opened it
    thinking_budget: int | None = None  # tokens
    shows_reasoning: bool = True
    tool_format: str | None = None  # None: the answer holds no calls
    functions: tuple[Function, ...] = ()
    shown_ids: frozenset[int] = frozenset()  # control tokens that the parsers have to see


class OutputPlanner:
    """Makes plans for one model, whose chat template tells how it thinks and calls."""

    def __init__(
        self, tokenizer: PlanTokenizer, template: str, tool_format: str = "auto", reasoning_format: str = "auto"
    ) -> None:
        """`template`: its source, "" where there is none. The formats are names of the tables; "none": no thinking."""
        self._tokenizer = tokenizer
        self.template = template
        self.tools: ToolFormat = format_of(template) if tool_format == "auto" else FORMATS[tool_format]
        self.reasoning: ReasoningFormat | None = None
        if reasoning_format == "auto":
            self.reasoning = reasoning.reasoning_of(template)
        elif reasoning_format != "none":
            self.reasoning = reasoning.FORMATS[reasoning_format]

    @property
    def tells_of_tools(self) -> bool:
        """Whether the conversation has to say what the template does not: which tools there are."""
        return self.tools is GENERIC and "tools" not in self.template

    def of_completion(self, body: Structured) -> OutputPlan:
        asked = grammar_asked(body)
        return OutputPlan() if asked is None else OutputPlan(asked.source, asked.param)

    def of_chat(self, body: ChatRequest, prompt_ids: Sequence[int]) -> OutputPlan:
        """Raises RequestError naming the field."""
        plan = self._with_grammar(body)
        row = self.reasoning
        if row is None and body.thinking_token_budget is not None:
            raise RequestError("this model does not think before it answers", param="thinking_token_budget")
        if plan.grammar_thinks and body.thinking_token_budget is not None:
            raise RequestError("a budget of thinking and tools exclude each other here", param="thinking_token_budget")
        tail = "" if row is None else self._tokenizer.decode(prompt_ids[-TAIL_TOKENS:], skip_special=False)
        if row is None or row.is_closed(tail):
            return plan
        return replace(
            plan,
            reasoning=row.name,
            thinking_open=row.is_open(tail, within=bool(body.continue_final_message)),
            thinking_budget=body.thinking_token_budget,
            shows_reasoning=body.include_reasoning is not False,
            shown_ids=plan.shown_ids | control_ids(self._tokenizer, row.markers),
        )

    def _with_grammar(self, body: ChatRequest) -> OutputPlan:
        asked = grammar_asked(body)
        tools = body.offered
        required = body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)
        if not tools:
            if required:
                raise RequestError("tool_choice needs tools that can be called", param="tool_choice")
            return OutputPlan() if asked is None else OutputPlan(asked.source, asked.param)
        functions = [self._prepared(i, tool, required) for i, tool in _callable(tools, body.tool_choice)]
        parallel = body.parallel_tool_calls is not False
        if asked is not None and not required and asked.schema is None:
            raise RequestError(f"{asked.param} of this kind and tools exclude each other", param=asked.param)
        whole = required or asked is not None
        text = self.tools.grammar(CallGrammar(functions, whole, parallel, inline_schema, self._marker))
        if asked is not None and not required:
            item = inline_schema(prepare_schema(asked.schema))
            text = f"start: otherwise | calls\notherwise: {item}\n{text.replace('start:', 'calls:', 1)}"
        return OutputPlan(
            grammar=GrammarSource("built", text),
            grammar_param="tools" if asked is None else asked.param,
            grammar_needed=whole or any(function.strict for function in functions),
            grammar_thinks=self.tools.name == "harmony",
            tool_format=self.tools.name,
            functions=tuple(Function(tool.function.name, tool.function.parameters or {}) for tool in tools),
            shown_ids=control_ids(self._tokenizer, self.tools.markers),
        )

    def _prepared(self, place: int, tool: Tool, required: bool) -> Function:
        """The function as a grammar takes it. A schema that cannot be held to is dropped, where it need not be."""
        function = tool.function
        strict = required or bool(function.strict)
        try:
            schema = prepare_schema(function.parameters or {"type": "object", "properties": {}})
            if not isinstance(schema, dict):
                raise RequestError("the schema of arguments is an object")
        except RequestError as error:
            if strict:
                raise RequestError(
                    f"the function {function.name}: {error}", param=f"tools[{place}].function.parameters"
                ) from None
            schema = {"type": "object"}
        return Function(function.name, schema, strict)

    def _marker(self, text: str) -> str:
        """A control token where the text names one, otherwise the text, as Lark writes them."""
        ids = self._tokenizer.encode(text, add_special=False, parse_special=True)
        return f"<[{ids[0]}]>" if len(ids) == 1 and self._tokenizer.is_special(ids[0]) else literal(text)


def _callable(tools: Sequence[Tool], choice: object) -> list[tuple[int, Tool]]:
    """The tools that may be called, with their places. Names must differ."""
    names = [tool.function.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise RequestError(f"two tools are called {name!r}", param=f"tools[{i}].function.name")
    if not isinstance(choice, NamedTool):
        return list(enumerate(tools))
    if choice.function.name not in names:
        raise RequestError(f"there is no tool called {choice.function.name!r}", param="tool_choice")
    place = names.index(choice.function.name)
    return [(place, tools[place])]
