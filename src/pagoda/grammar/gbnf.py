r"""GBNF, the grammars of llama.cpp, in llguidance's dialect of Lark.

A grammar without recursion becomes one regular expression, which is fast. With recursion every character becomes a
symbol of the grammar: llguidance cuts a text into the longest pieces before it parses them, and so would miss texts
where a shorter piece is meant (`[a-z]+ "end"` on 'abend'). That is exact too, but a mask then takes a millisecond.

Not translated: `!<token>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pagoda.errors import RequestError

MAX_DEPTH = 100  # of parentheses
MAX_RULES = 1000  # llguidance recurses from rule to rule
MAX_COUNT = 10_000  # of one repetition

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_DEFINITION = re.compile(r"[ \t]*::=")
_COUNT = re.compile(r"\{\s*(\d+)\s*(,)?\s*(\d+)?\s*\}")
_TOKEN = re.compile(r"<(\[\d+\]|[^<>\s]+)>")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def gbnf_to_lark(text: str) -> str:
    """The grammar in Lark. Raises RequestError naming what is wrong or not translated, and where."""
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise RequestError("the grammar has no rule called root")
    for rule in rules.values():
        for name in rule.names:
            if name not in rules:
                raise RequestError(f"the grammar uses the rule {name}, but does not define it")
    regular = not any(rule.tokens for rule in rules.values()) and not _is_recursive(rules)
    names = {name: f"T{i}" if regular else f"r{i}" for i, name in enumerate(rules)}
    lines = [f"{names[name]}: {_expanded(rule, names)}" for name, rule in rules.items()]
    return "\n".join([f"start: {names['root']}", *lines])


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule, as pieces of Lark; names of rules are still GBNF's."""

    pieces: tuple[str | _Name, ...]
    tokens: bool  # whether it holds tokens, which are no text

    @property
    def names(self) -> list[str]:
        return [piece.name for piece in self.pieces if isinstance(piece, _Name)]


@dataclass(frozen=True, slots=True)
class _Name:
    name: str


def _expanded(rule: _Rule, names: dict[str, str]) -> str:
    return " ".join(names[piece.name] if isinstance(piece, _Name) else piece for piece in rule.pieces)


def _is_recursive(rules: dict[str, _Rule]) -> bool:
    """Whether some rule leads to itself: rules that lead to none but finished ones are finished, until none is left."""
    open_rules = {name: set(rule.names) for name, rule in rules.items()}
    while finished := {name for name, uses in open_rules.items() if not uses & open_rules.keys()}:
        for name in finished:
            del open_rules[name]
    return bool(open_rules)


class _Parser:
    """Reads a grammar from its start to its end; `_at` is where it stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._tokens = False

    def rules(self) -> dict[str, _Rule]:
        found: dict[str, _Rule] = {}
        self._skip(newlines=True)
        while self._at < len(self._text):
            name = self._match(_NAME, "the name of a rule")[0]
            self._match(_DEFINITION, "::=")
            self._skip(newlines=True)
            self._tokens = False
            pieces = self._alternatives(depth=0)
            if name in found:
                raise self._error(f"the rule {name} is defined twice")
            found[name] = _Rule(tuple(pieces), self._tokens)
            if len(found) > MAX_RULES:
                raise self._error(f"there are more than {MAX_RULES} rules")
            self._skip(newlines=True)
        return found

    def _alternatives(self, depth: int) -> list[str | _Name]:
        pieces = self._sequence(depth)
        while self._peek() == "|":
            self._at += 1
            self._skip(newlines=True)
            pieces += ["|", *self._sequence(depth)]
        return pieces

    def _sequence(self, depth: int) -> list[str | _Name]:
        pieces: list[str | _Name] = []
        while (char := self._peek()) and char not in "|)\n\r":
            pieces += self._item(char, depth)
            self._skip(newlines=depth > 0)
            pieces += self._repetition(depth)
        return pieces or ['""']

    def _item(self, char: str, depth: int) -> list[str | _Name]:
        if char == '"':
            chars: list[str | _Name] = [f"/{_escaped(char)}/" for char in self._literal()]
            return ["(", *chars, ")"] if len(chars) > 1 else chars or ['""']
        if char == "[":
            return [self._class()]
        if char == ".":
            self._at += 1
            return ["/(?s:.)/"]
        if char == "(":
            if depth >= MAX_DEPTH:
                raise self._error(f"parentheses are nested more than {MAX_DEPTH} deep")
            self._at += 1
            self._skip(newlines=True)
            inner = self._alternatives(depth + 1)
            self._expect(")")
            return ["(", *inner, ")"]
        if char == "<":
            self._tokens = True
            return [self._match(_TOKEN, "a token, such as <[1000]> or <think>")[0]]
        if char == "!":
            raise self._error("!<token> is not supported")
        return [_Name(self._match(_NAME, "a literal, a class, a rule or parentheses")[0])]

    def _repetition(self, depth: int) -> list[str | _Name]:
        """What says how often the item before it comes."""
        suffix = ""
        if self._peek() in ("*", "+", "?"):
            suffix = self._peek()
            self._at += 1
        elif self._peek() == "{":
            low, comma, high = self._match(_COUNT, "a count, such as {2} or {1,3}").groups()
            if high and int(high) < int(low):
                raise self._error(f"a count from {low} to {high} is empty")
            if max(int(low), int(high or 0)) > MAX_COUNT:
                raise self._error(f"a count is above {MAX_COUNT}")
            suffix = f"{{{low},{high or ''}}}" if comma else f"{{{low}}}"
        self._skip(newlines=depth > 0)
        return [suffix] if suffix else []

    def _literal(self) -> str:
        self._at += 1
        chars = []
        while self._peek() != '"':
            chars.append(self._char())
        self._at += 1
        return "".join(chars)

    def _class(self) -> str:
        """[a-z] as a class of Rust's regular expressions."""
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while self._peek() != "]":
            low = high = self._char()
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._char()
            if high < low:
                raise self._error(f"the range {low}-{high} is empty")
            ranges.append(f"{_escaped(low)}-{_escaped(high)}")
        self._at += 1
        if not ranges and not negated:
            raise self._error("a class is empty: it would match nothing")
        return f"/[{'^' if negated else ''}{''.join(ranges)}]/" if ranges else "/(?s:.)/"

    def _char(self) -> str:
        """One character of a literal or class, escapes resolved."""
        char = self._text[self._at : self._at + 1]
        if char in ("", "\n"):
            raise self._error("a literal or class does not end")
        self._at += 1
        if char != "\\":
            return char
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = self._text[self._at : self._at + _HEX_DIGITS.get(kind, 0)]
        try:
            code = int(digits, 16)
            chr(code).encode()
        except (ValueError, OverflowError):
            raise self._error(f"\\{kind}{digits} is no escape of a character") from None
        self._at += len(digits)
        return chr(code)

    def _skip(self, *, newlines: bool) -> None:
        """Blanks and comments."""
        while char := self._peek():
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif char in " \t" or (newlines and char in "\r\n"):
                self._at += 1
            else:
                break

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _expect(self, char: str) -> None:
        if self._peek() != char:
            raise self._error(f"{char} is missing")
        self._at += 1

    def _match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._error(f"{what} is missing")
        self._at = found.end()
        return found

    def _error(self, message: str) -> RequestError:
        line = self._text.count("\n", 0, self._at) + 1
        rest = self._text[self._at : self._at + 20].split("\n")[0]
        return RequestError(f"line {line} of the grammar, at {rest!r}: {message}")


def _escaped(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\u{{{ord(char):x}}}"
