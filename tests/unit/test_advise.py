"""RAG, fine-tune, both or neither: the decision table, and the command that asks."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from pagoda.cli import advise as advise_module
from pagoda.cli.advise import INVALID, QUESTIONS, answers, parse
from pagoda.cli.main import app
from pagoda.errors import ConfigError
from pagoda.plan.advice.adaptation import Situation, advise_adaptation, choose

TABLE = [
    # what is asked of the model, choice, words among its reasons
    ({}, "neither", "Nothing that it lacks"),
    ({"facts_change": "rarely"}, "neither", "Nothing that it lacks"),
    ({"facts_change": "often"}, "rag", "Facts change often"),
    ({"own_facts": True}, "rag", "facts of your own"),
    ({"citations": True}, "rag", "must cite"),
    ({"own_facts": True, "facts_change": "rarely"}, "rag", "re-indexing is cheaper"),
    ({"style": True}, "fine-tune", "prompts cannot fix"),
    ({"style": True, "prompts_suffice": True}, "neither", "fixed by the prompt already"),
    ({"style": True, "examples": 10}, "neither", "10 examples are too few"),
    ({"style": True, "examples": 2000}, "fine-tune", "prompts cannot fix"),
    ({"style": True, "budget": "small"}, "fine-tune", "prompts cannot fix"),
    ({"own_facts": True, "style": True}, "both", "prompts cannot fix"),
    ({"own_facts": True, "style": True, "budget": "small"}, "rag", "budget is small"),
    ({"own_facts": True, "style": True, "examples": 3}, "rag", "3 examples are too few"),
    ({"own_facts": True, "style": True, "prompts_suffice": True}, "rag", "fixed by the prompt already"),
    ({"citations": True, "style": True, "facts_change": "often", "examples": 5000}, "both", "Facts change often"),
]


@pytest.mark.parametrize(("asked", "choice", "words"), TABLE)
def test_the_decision_table(asked: dict[str, Any], choice: str, words: str) -> None:
    found = advise_adaptation(Situation(**asked))
    assert found.choice == choice
    assert any(words in reason for reason in found.reasons)
    assert found.steps


def test_more_need_of_facts_never_takes_rag_away() -> None:
    for asked, choice, _ in TABLE:
        if choice in ("rag", "both"):
            assert choose(Situation(**{**asked, "citations": True, "own_facts": True})) in ("rag", "both")


def test_rag_then_training_says_so() -> None:
    steps = advise_adaptation(Situation(own_facts=True, style=True, budget="small")).steps
    assert any("Then, with RAG in place, fine-tune" in step for step in steps)


def run(*args: str) -> Any:
    result = CliRunner().invoke(app, ["advise", *args])
    assert result.exit_code == 0, result.output
    return result


def test_json() -> None:
    report = json.loads(run("--json", "--facts-change", "often", "--no-style", "--budget", "small").output)
    assert report["choice"] == "rag"
    assert report["situation"]["facts_change"] == "often"
    assert report["assumed"] == ["own_facts", "citations"]
    assert all(isinstance(report[part], list) for part in ("reasons", "steps", "cautions"))


def test_without_a_terminal_it_says_what_it_assumed() -> None:
    output = run("--style").output
    assert output.startswith("fine-tune")
    assert "taken as no" in output
    assert "--citations" in output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--facts-change", "hourly"), "'hourly' is not one of never, rarely, often"),
        (("--budget", "huge"), "'huge' is not one of"),
        (("--examples", "-1"), "at least 0"),
    ],
)
def test_nonsense_is_refused(args: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["advise", *args])
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)


def test_questions_that_do_not_matter_are_not_asked() -> None:
    asked = []

    def ask(question: advise_module.Question) -> object:
        asked.append(question.field)
        return {"own_facts": True, "facts_change": "never", "budget": "small"}.get(question.field, False)

    nothing = dict.fromkeys((question.field for question in QUESTIONS), None)
    known, assumed = answers({**nothing, "citations": True}, ask)
    assert asked == ["own_facts", "facts_change", "style", "budget"]
    assert assumed == []
    assert Situation(**known) == Situation(own_facts=True, citations=True, budget="small")


def test_asking_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed = iter(["y", "maybe", "o", "", "n", "small"])
    monkeypatch.setattr(advise_module.typer, "prompt", lambda *args, **kwargs: next(typed))
    nothing = dict.fromkeys((question.field for question in QUESTIONS), None)
    known, _ = answers(nothing, advise_module._ask)
    assert Situation(**known) == Situation(own_facts=True, facts_change="often", budget="small")


def test_answers_are_parsed() -> None:
    by_field = {question.field: question for question in QUESTIONS}
    assert parse(by_field["style"], "yes") is True
    assert parse(by_field["style"], "n") is False
    assert parse(by_field["style"], "") is None
    assert parse(by_field["style"], "perhaps") is INVALID
    assert parse(by_field["examples"], "120") == 120
    assert parse(by_field["examples"], "-3") is INVALID
    assert parse(by_field["facts_change"], "r") == "rarely"
