"""llama.cpp's grammars: what each construct means, and what is refused where."""

from __future__ import annotations

import pytest

from grammar_walk import accepts, small_tokenizer
from pagoda.errors import RequestError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.gbnf import gbnf_to_lark
from pagoda.grammar.source import GrammarSource

TOKENIZER = small_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER)

# Grammar, texts that it allows, and texts that it does not: grammars/README.md of llama.cpp.
CASES: list[tuple[str, list[str], list[str]]] = [
    ('root ::= "abc"', ["abc"], ["ab", "abcabc"]),
    ('root ::= "abc"*', ["", "abcabc"], ["abcc"]),
    ('root ::= "a"{2} "b"{1,} "c"{0,2}', ["aab", "aabbcc"], ["ab", "aabccc"]),
    ('root ::= "a"? ("b" | "c" "d")+', ["b", "acdb"], ["a", "ac"]),
    ("root ::= [a-c] [^a-c\\n] [-x\\]]", ["adx", "bz-", "c ]"], ["aax", "a\nx", "adz"]),
    ("root ::= .", ["x", "\n", "é"], ["", "xy"]),
    ('root ::= "\\x41\\u00e9\\U0001F600\\t\\"\\\\"', ['Aé😀\t"\\'], ["A"]),
    ('root ::= x-1 # a comment\n\nx-1 ::= "p" |\n  "q"\n', ["p", "q"], ["x"]),
    ('root ::= (\n  "a" # one\n  | "b"\n)', ["a", "b"], ["ab"]),
    ('root ::= "" | "a" root', ["", "aaa"], ["b"]),
    # what cuts into the longest pieces would miss
    ('root ::= word "end"\nword ::= [a-z]+', ["abend", "endend"], ["end"]),
    ('root ::= "(" item ")"\nitem ::= [a-z]+ "z" | root', ["(abz)", "((zz))"], ["(ab)", "(z)"]),
]


@pytest.mark.parametrize(("grammar", "allowed", "not_allowed"), CASES)
def test_constructs(grammar: str, allowed: list[str], not_allowed: list[str]) -> None:
    compiled = COMPILER.compile(GrammarSource("gbnf", grammar))
    assert [text for text in allowed if not accepts(compiled, TOKENIZER, text)] == []
    assert [text for text in not_allowed if accepts(compiled, TOKENIZER, text)] == []


def test_a_grammar_without_recursion_is_one_terminal() -> None:
    assert gbnf_to_lark('root ::= a "!"\na ::= [a-z]+').startswith("start: T0\nT0: T1 ")
    assert gbnf_to_lark('root ::= "a" root | "b"').startswith("start: r0\nr0: ")


REFUSED = [
    ('start ::= "a"', "no rule called root"),
    ('root ::= "a" other', "uses the rule other, but does not define it"),
    ('root ::= "a"\nroot ::= "b"', "line 2 .*the rule root is defined twice"),
    ('root ::= "a', "line 1 .*does not end"),
    ("root ::= [a-z", "does not end"),
    ('root ::= "\\q"', "\\\\q is no escape"),
    ('root ::= "\\uD800"', "no escape of a character"),
    ('root ::= "\\x4"', "no escape of a character"),
    ("root ::= [z-a]", "the range z-a is empty"),
    ("root ::= []", "a class is empty"),
    ('root ::= ("a"', "\\) is missing"),
    ('root ::= "a"{3,1}', "a count from 3 to 1 is empty"),
    ('root ::= "a"{x}', "a count, such as"),
    ('root ::= "a"{20000}', "a count is above"),
    ('root ::= !<think> "a"', "!<token> is not supported"),
    ('root = "a"', "::= is missing"),
    ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "parentheses are nested more than 100 deep"),
    ("\n".join(['root ::= "a"', *(f'r{i} ::= "a"' for i in range(1001))]), "more than 1000 rules"),
]


@pytest.mark.parametrize(("grammar", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(grammar: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        gbnf_to_lark(grammar)
