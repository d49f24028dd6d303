"""The process in which chat templates run: jinja2's immutable sandbox, with what published templates expect of it.

No attribute leads out of the sandbox, and nothing that is passed in can be changed. Its other end is `sandbox.py`.
"""

from __future__ import annotations

import json
import marshal
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from io import BufferedRWPair
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import Template, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pagoda.text.sandbox import ERROR, HEADER, OVERDRAWN, READY, TEXT, Budget, OverdrawnError

MAX_MESSAGE = 1000  # characters of an error
KEPT_TEMPLATES = 8


class _GenerationTag(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's words for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Environment(ImmutableSandboxedEnvironment):
    """As in Hugging Face's `apply_chat_template`: its whitespace rules, extensions, functions and filters."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.steps_left = 0

    def template(self, source: str) -> Template:
        """The template, whose loops and macros count their steps."""
        tree = self.parse(source)
        repeated: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in repeated:
            count = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(count, lineno=node.lineno).set_lineno(node.lineno))
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def count_step(self) -> None:
        """Raises OverdrawnError when there are no steps left."""
        self.steps_left -= 1
        if self.steps_left < 0:
            raise OverdrawnError("it takes too many steps")


def main(fd: int) -> None:
    """The life of the process; `fd` is its end of the socket. It ends with the socket, not with the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = Environment()
    own_bytes = _address_space()
    template = lru_cache(KEPT_TEMPLATES)(environment.template)
    with socket.socket(fileno=fd) as sock, sock.makefile("rwb") as file, suppress(OSError):
        _send(file, READY)
        while (request := _receive(file)) is not None:
            source, variables, limits = marshal.loads(request)  # from the program that started this one
            budget = Budget(*limits)
            _limit_memory(own_bytes + budget.memory)
            environment.steps_left = budget.steps
            signal.setitimer(signal.ITIMER_PROF, budget.cpu_s)  # its signal ends the process
            kind, data = answer(template, source, variables, budget)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(file, kind + len(data).to_bytes(HEADER - 1, "little") + data)


def answer(
    template: Callable[[str], Template], source: str, variables: bytes | None, budget: Budget
) -> tuple[bytes, bytes]:
    """→ (what the answer is, the text or the error). Without variables the template is only compiled."""
    try:
        compiled = template(source)
        text = "" if variables is None else rendered(compiled, marshal.loads(variables), budget.chars)
        return TEXT, text.encode("utf-8", "surrogatepass")
    except OverdrawnError as error:
        return OVERDRAWN, _error(error)
    except MemoryError:
        return OVERDRAWN, _error(f"it takes more than {budget.memory >> 20} MiB of memory")
    except jinja2.TemplateSyntaxError as error:
        return ERROR, _error(error.message, error.lineno)
    except Exception as error:  # a template may raise anything, down to TypeError for a missing field
        return ERROR, _error(error)


def rendered(template: Template, variables: Mapping[str, Any], max_chars: int) -> str:
    """Raises TemplateError when the text passes `max_chars`, besides all that the template raises."""
    parts, size = [], 0
    for part in template.generate(variables):
        size += len(part)
        if size > max_chars:
            raise jinja2.TemplateError(f"the prompt would be longer than {max_chars} characters")
        parts.append(part)
    return "".join(parts)


def _error(error: object, line: int | None = None) -> bytes:
    return json.dumps({"message": str(error)[:MAX_MESSAGE], "line": line}).encode()


def _address_space() -> int:
    """Bytes that this process has mapped."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * resource.getpagesize()
    return 512 * 1024 * 1024


def _limit_memory(num_bytes: int) -> None:
    """Allocations beyond it raise MemoryError. The hard limit stays, so that it can be set anew."""
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))


def _receive(file: BufferedRWPair) -> bytes | None:
    """The next request; None at the end."""
    header = file.read(HEADER)
    return file.read(int.from_bytes(header[1:], "little")) if len(header) == HEADER else None


def _send(file: BufferedRWPair, data: bytes) -> None:
    file.write(data)
    file.flush()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


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
