"""gpt-oss: a message on the commentary channel to functions.NAME, whose text is its arguments (`text/harmony.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.text.harmony import CHANNEL, CONSTRAIN, END, MARKERS, MESSAGE, RECIPIENT, START, HarmonyParser, ThoughtPiece
from pagoda.text.tools.base import CallGrammar, Event, Function, ToolParser, call_id, literal
from pagoda.text.tools.grammar import CallRule, answer, arguments_item


class _Calls:
    """A `ToolParser`: what the answer thinks is no part of what it says."""

    def __init__(self, names: frozenset[str]) -> None:
        self._parser = HarmonyParser(names)

    def push(self, text: str) -> list[Event]:
        return [piece for piece in self._parser.push(text) if not isinstance(piece, ThoughtPiece)]

    def finish(self) -> list[Event]:
        return [piece for piece in self._parser.finish() if not isinstance(piece, ThoughtPiece)]


@dataclass(frozen=True, slots=True)
class Harmony:
    """See the module. A call ends the answer, so that there is one in it. Its grammar holds the thinking, too."""

    name: str = "harmony"
    markers: tuple[str, ...] = MARKERS

    def is_of(self, template: str) -> bool:
        return CHANNEL in template and RECIPIENT.removeprefix("to=") in template and MESSAGE in template

    def parser(self, functions: Sequence[Function]) -> ToolParser:
        return _Calls(frozenset(function.name for function in functions))

    def grammar(self, wanted: CallGrammar) -> str:
        tokens = tuple(map(wanted.marker, (CHANNEL, MESSAGE, CONSTRAIN, END, START)))
        if all(token.startswith("<[") for token in tokens):
            return _whole(wanted, *tokens)
        calls = [
            f"call{i}: {literal(f'{function.name} json{MESSAGE}')} {arguments_item(wanted, function)}"
            for i, function in enumerate(wanted.functions)
        ]
        options = " | ".join(f"call{i}" for i in range(len(calls)))
        return answer(wanted, CallRule(f"{CHANNEL}commentary {RECIPIENT}", f"({options})", calls), repeats=False)

    def new_id(self) -> str:
        return call_id()


def _whole(wanted: CallGrammar, channel: str, message: str, constrain: str, end: str, start: str) -> str:
    """All messages of an answer, of marks that are control tokens, so that no text holds them."""
    calls = [f"call{i}" for i in range(len(wanted.functions))]
    rules = []
    for i, function in enumerate(wanted.functions):
        to = f" {RECIPIENT}{function.name}"
        inside = f"{channel} {literal('commentary' + to)}"
        before = f'{literal(to)} {channel} "commentary"'
        kind = f'(" " {constrain} "json" | " json")?'
        rules.append(f"call{i}: ({inside} | {before}) {kind} {message} {arguments_item(wanted, function)}")
    last = "call" if wanted.required else f'call | {channel} "final" {message} TEXT | TEXT'
    return "\n".join(
        [
            f'start: (before {end} {start} "assistant")* ({last})',
            f'before: {channel} ("analysis" | "commentary") {message} TEXT',
            f"call: {' | '.join(calls)}",
            r"TEXT: /(.|\n)*/",
            *rules,
        ]
    )
