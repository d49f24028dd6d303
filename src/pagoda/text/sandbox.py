"""The jinja2 environment in which chat templates run, with what published templates expect of it.

Templates come with model files, so they run in the immutable sandbox: no attribute that leads out, no change to what
is passed in, no huge ranges, products or outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS = 16 * 1024 * 1024  # of one rendered prompt: twice the largest request body


class _GenerationTag(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's words for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also refuses products that would fill the memory: 'a' * 10**9, 9 ** 9 ** 9."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 2**32 and abs(right) < 64):
            raise TemplateError(f"{left} ** {right} is too large")
        if operator == "*":
            lengths = [len(side) for side in (left, right) if isinstance(side, (str, list, tuple))]
            counts = [side for side in (left, right) if isinstance(side, int)]
            if lengths and counts and lengths[0] * counts[0] > MAX_CHARS:
                raise TemplateError(f"a repetition of {lengths[0] * counts[0]} elements is too long")
        return super().call_binop(context, operator, left, right)


def environment() -> ImmutableSandboxedEnvironment:
    """As in Hugging Face's `apply_chat_template`: its whitespace rules, extensions, functions and filters."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = _strftime_now
    return sandbox


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """Raises TemplateError when the text passes MAX_CHARS, besides all that the template raises."""
    parts, size = [], 0
    for part in template.generate(variables):
        size += len(part)
        if size > MAX_CHARS:
            raise TemplateError(f"the prompt would be longer than {MAX_CHARS} characters")
        parts.append(part)
    return "".join(parts)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML and non-ASCII letters, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
