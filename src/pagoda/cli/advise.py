"""`pagoda advise`: RAG, fine-tune, both or neither, from a handful of questions, with the reasons."""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pagoda.errors import ConfigError
from pagoda.plan.advice.adaptation import TITLES, Adaptation, Budget, Change, Situation, advise_adaptation


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to know: a field of Situation. `ask` says whether it matters, given the answers before."""

    field: str
    text: str
    answers: tuple[str, ...]  # the first is what silence means
    ask: Callable[[dict[str, Any]], bool] = lambda known: True


YES_NO = ("no", "yes")
QUESTIONS = (
    Question("own_facts", "Must it know documents or data of your own?", YES_NO),
    Question("facts_change", "How often do the facts in its answers change?", typing.get_args(Change)),
    Question("citations", "Must answers say where they come from?", YES_NO),
    Question("style", "Must format, tone or jargon differ from what the model does by itself?", YES_NO),
    Question("prompts_suffice", "Do instructions and examples in the prompt fix that?", YES_NO, lambda k: k["style"]),
    Question("examples", "How many examples of the wanted output have you? (a number)", (), lambda k: k["style"]),
    Question("budget", "Is the budget small or normal?", ("normal", "small")),
)


def advise(
    own_facts: Annotated[bool | None, typer.Option(help="It must know documents or data of your own.")] = None,
    facts_change: Annotated[str | None, typer.Option(metavar="never|rarely|often", help="Facts change.")] = None,
    citations: Annotated[bool | None, typer.Option(help="Answers must say where they come from.")] = None,
    style: Annotated[bool | None, typer.Option(help="Format, tone or jargon must differ.")] = None,
    prompts_suffice: Annotated[bool | None, typer.Option(help="Prompts fix format, tone and jargon.")] = None,
    examples: Annotated[int | None, typer.Option(metavar="N", help="Examples of the wanted output at hand.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="normal|small", help="What may be spent.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer RAG, fine-tune, both or neither, with the reasons.

    Asks what no flag has said, if there is a terminal to ask on; without one, what was not said is taken as no.

    For weight formats, speculative decoding and memory of fine-tuning: pagoda advise format, advise speculation,
    advise finetune.
    """
    given = {
        "own_facts": own_facts,
        "facts_change": _one_of("--facts-change", facts_change, typing.get_args(Change)),
        "citations": citations,
        "style": style,
        "prompts_suffice": prompts_suffice,
        "examples": _count(examples),
        "budget": _one_of("--budget", budget, typing.get_args(Budget)),
    }
    asks = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    known, assumed = answers(given, _ask if asks else None)
    situation = Situation(**known)
    found = advise_adaptation(situation)
    if as_json:
        report = {"situation": asdict(situation), "assumed": assumed, **asdict(found)}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(found, assumed)


def answers(given: dict[str, Any], ask: Callable[[Question], Any] | None) -> tuple[dict[str, Any], list[str]]:
    """The situation after asking, and the fields that were neither given nor asked about."""
    known: dict[str, Any] = {}
    assumed = []
    for question in QUESTIONS:
        value = given[question.field]
        if value is None and ask is not None and question.ask(known):
            value = ask(question)
        elif value is None and question.ask(known):
            assumed.append(question.field)
        known[question.field] = _silence(question) if value is None else value
    return known, assumed


def _silence(question: Question) -> Any:
    if question.answers == YES_NO:
        return False
    return question.answers[0] if question.answers else None


def _ask(question: Question) -> Any:
    """Ask on the terminal until the answer is valid; an empty line means the first answer."""
    hint = f" [{'/'.join(question.answers)}]" if question.answers else ""
    while True:
        text = typer.prompt(question.text + hint, default="", show_default=False).strip().lower()
        found = parse(question, text)
        if found is not INVALID:
            return found
        typer.echo(f"Please answer with {' or '.join(question.answers) or 'a whole number from 0'}.")


INVALID = object()


def parse(question: Question, text: str) -> Any:
    """The answer in the field's type; None for an empty line; INVALID for what is none."""
    if not text:
        return None
    if not question.answers:
        return int(text) if text.isdecimal() else INVALID
    found = [answer for answer in question.answers if answer.startswith(text)]
    if len(found) != 1:
        return INVALID
    return found[0] == "yes" if question.answers == YES_NO else found[0]


def _one_of(flag: str, value: str | None, known: tuple[str, ...]) -> str | None:
    if value is not None and value not in known:
        raise ConfigError(f"{flag}: {value!r} is not one of {', '.join(known)}")
    return value


def _count(examples: int | None) -> int | None:
    if examples is not None and examples < 0:
        raise ConfigError(f"--examples: {examples} is out of range, must be at least 0")
    return examples


def _print(found: Adaptation, assumed: list[str]) -> None:
    console = Console(highlight=False)
    console.print(f"[bold green]{TITLES[found.choice]}[/]\n")
    for title, lines in (("Why", found.reasons), ("First", found.steps), ("Mind", found.cautions)):
        print_list(console, title, lines)
    if assumed:
        flags = ", ".join("--" + name.replace("_", "-") for name in assumed)
        console.print(f"\nNot said, and taken as no or not known: {flags}", style="dim")


def print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    """A title and its sentences; nothing if there are none."""
    if not lines:
        return
    console.print(f"[bold]{title}[/]")
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row(" -", escape(line))
    console.print(table)
