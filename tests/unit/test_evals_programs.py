"""Answers that a program checks."""

import asyncio

import pytest

from pagoda.evals import builtin  # noqa: F401
from pagoda.evals.cases import Case
from pagoda.evals.evaluators import Score, Unjudged, find, score_case


def score(metric: str, answer: str, **extra: object) -> Score:
    return asyncio.run(score_case(find((metric,))[0], Case("1", "q", answer, extra=extra), None))


@pytest.mark.parametrize(("answer", "value"), [("It is 42.", 1), ("It is 4.", 0)])
def test_a_pattern_must_occur(answer: str, value: float) -> None:
    assert score("regex", answer, pattern=r"\b42\b").value == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"name": "x"}', 1),
        ('Here:\n```json\n{"name": "x"}\n```\nDone.', 1),
        ('{"name": 3}', 0),
        ("no JSON", 0),
    ],
)
def test_json_must_fit_its_schema(answer: str, value: float) -> None:
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    assert score("json_schema", answer, schema=schema).value == value


TESTS = "assert double(4) == 8"


def test_code_that_passes() -> None:
    assert score("code", "```python\ndef double(x):\n    return 2 * x\n```", tests=TESTS).value == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("def double(x):\n    return x", "AssertionError"),
        ("def double(x) return", "SyntaxError"),
        ("open('f', 'w').write('x' * 99999)", "File too large"),
        ("import os\nraise ValueError(len(os.environ) < 3)", "ValueError: True"),
    ],
)
def test_code_that_fails_says_why(answer: str, error: str) -> None:
    found = score("code", answer, tests=TESTS)
    assert found.value == 0
    assert error in found.reasons[0]["error"]


@pytest.mark.parametrize(("metric", "lacks"), [("regex", "pattern"), ("code", "tests")])
def test_what_a_line_lacks_is_named(metric: str, lacks: str) -> None:
    with pytest.raises(Unjudged, match=f"has no {lacks}"):
        score(metric, "x")


def test_a_bad_pattern_is_the_cases_fault() -> None:
    with pytest.raises(Unjudged, match="not a regular expression"):
        score("regex", "x", pattern="(")
