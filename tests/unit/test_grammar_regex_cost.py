"""Which regular expressions count too much."""

from __future__ import annotations

import re

import pytest

from pagoda.errors import RequestError
from pagoda.grammar.regex_cost import MAX_LENGTH, check_cost


@pytest.mark.parametrize(
    "pattern",
    [
        "a{20000}",
        ".{1,10000}",
        "(a{10}b{20}){50}",
        "[{9999999}]",
        r"\{99999\}",
        "(a+)+b",
        "(a|b)*",
        "a{2,}",
        "(((a)))",
        "x{}",
    ],
)
def test_what_may_be(pattern: str) -> None:
    check_cost(pattern, "")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a{20001}", "repeats too much at {20001}"),
        ("(a{100}){100}", "repeats too much at {100}"),
        ("(?:x(a{50})*y){21,}", "repeats too much at {21,}"),
        ("((a{0,9}){0,9}b){0,20}", "repeats too much at {0,20}"),
        ("(" * 200 + ")" * 200, "groups more than 100 deep"),
        ("a" * (MAX_LENGTH + 1), "20001 characters"),
    ],
)
def test_what_may_not(pattern: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        check_cost(pattern, "")
    with pytest.raises(RequestError, match=r"^at properties\.a: "):
        check_cost(pattern, "properties.a")
