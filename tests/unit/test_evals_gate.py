"""Results, the gate's verdicts and its exit status as a process, summaries, and runs that were interrupted."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest
import yaml

from pagoda.errors import ConfigError, FormatError, PagodaError
from pagoda.evals import builtin  # noqa: F401
from pagoda.evals.cases import Case, read_testset
from pagoda.evals.ci_files import FILES, Pipeline, install_command, write_files
from pagoda.evals.evaluators import find
from pagoda.evals.gate import Rule, judge_change
from pagoda.evals.report_page import page
from pagoda.evals.results import CaseResult, Results, Setup, read_results, write_results
from pagoda.evals.run import Journal, Plan, evaluate, measure_noise
from pagoda.evals.summaries import changed_cases, junit, markdown
from pagoda.evals.targets import open_target

SETUP = Setup("a" * 64, ("faithfulness",), "j", "p", "expected")


def results(scores: list[float | None], setup: Setup = SETUP) -> Results:
    metric = setup.metrics[0]
    return Results(
        setup,
        tuple(
            CaseResult(
                str(i), f"q{i}", "a", {} if s is None else {metric: s}, {metric: "no verdict"} if s is None else {}
            )
            for i, s in enumerate(scores)
        ),
    )


BEFORE = results([0.9] * 50 + [0.8] * 50)
WORSE = results([0.9] * 40 + [0.0] * 10 + [0.8] * 50)
BARELY = results([0.9] * 98 + [0.88] + [0.8])


@pytest.mark.parametrize(
    ("now", "rule", "outcome", "sentence"),
    [
        (BEFORE, Rule(), "pass", "faithfulness is the same on 100 cases: passes"),
        (WORSE, Rule(), "fail", "faithfulness fell by 9.0 points (95 % interval"),
        (WORSE, Rule(threshold=0.2), "pass", "below the threshold of 20 points"),
        (WORSE, Rule("threshold", 0.05), "fail", "fails"),
        (results([0.9] * 49 + [0.5] + [0.8] * 50), Rule(threshold=0), "pass", "100 cases cannot tell from noise; "),
        (results([0.9] * 49 + [0.5] + [0.8] * 50), Rule("worse"), "fail", "fails"),
        (results([1.0] * 100), Rule("worse"), "pass", "rose by"),
        (results([0.9] * 50 + [None] * 50), Rule(), "unjudged", "50 of 100 cases could not be judged (no verdict)"),
        (results([None] * 100), Rule(max_unjudged=1), "unjudged", "no verdict"),
    ],
)
def test_verdicts(now: Results, rule: Rule, outcome: str, sentence: str) -> None:
    report = judge_change(BEFORE, now, rule)
    assert report.outcome == outcome
    assert sentence.replace("95 %", "95%") in report.verdicts[0].sentence


def test_a_metric_that_is_better_when_lower_fails_when_it_rises() -> None:
    setup = replace(SETUP, metrics=("noise_sensitivity",))
    low, high = results([0.1] * 60, setup), results([0.1] * 40 + [0.6] * 20, setup)
    assert judge_change(low, high, Rule()).outcome == "fail"
    assert judge_change(high, low, Rule()).outcome == "pass"
    assert "rose by 16.7 points" in judge_change(low, high, Rule()).verdicts[0].sentence


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"testset": "b" * 64}, "the test set: aaaaaaaaaaaa before, bbbbbbbbbbbb now"),
        ({"judge": "k"}, "the judge: j before, k now"),
        ({"prompts": "q"}, "the judge's prompts"),
        ({"verdicts": "sampled"}, "the kind of verdicts"),
        ({"metrics": ("mrr",)}, "the metrics: faithfulness only before"),
    ],
)
def test_unlike_runs_are_not_compared(change: dict[str, str], what: str) -> None:
    report = judge_change(BEFORE, replace(BEFORE, setup=replace(SETUP, **change)), Rule())  # type: ignore[arg-type]
    assert report.exit_code == 2
    assert what in report.incomparable[0]


def gate(tmp_path: Path, before: Results, now: Results, *flags: str) -> subprocess.CompletedProcess[str]:
    write_results(before, tmp_path / "b.json")
    write_results(now, tmp_path / "c.json")
    command = [sys.executable, "-m", "pagoda", "eval", "gate", "--baseline", "b.json", "--current", "c.json", *flags]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("now", "status"), [(BEFORE, 0), (WORSE, 1), (results([None] * 100), 2)])
def test_exit_status_of_the_process(tmp_path: Path, now: Results, status: int) -> None:
    done = gate(tmp_path, BEFORE, now, "--threshold", "0.05", "--junit", "j.xml", "--markdown", "m.md")
    assert done.returncode == status, done.stderr
    assert f"gate: {('pass', 'fail', 'unjudged')[status]}" in done.stdout
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert [suite.get(name) for name in ("tests", "failures", "skipped")] == [
        "1",
        str(int(status == 1)),
        str(int(status == 2)),
    ]
    assert "Quality gate" in (tmp_path / "m.md").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--current", "none.json"), "none.json: cannot be read"),
        (("--baseline", "broken.json"), "broken.json: is not JSON"),
        (("--junit", "no/j.xml"), "no/j.xml: cannot be written"),
        (("--markdown", "no/m.md"), "no/m.md: cannot be written"),
    ],
)
def test_without_its_files_the_gate_cannot_tell(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    done = gate(tmp_path, BEFORE, WORSE, *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_interval_says_more_than_a_whole_score() -> None:
    verdict = judge_change(results([1.0] * 4), results([0.0, 0.1, 0.0, 0.9]), Rule()).verdicts[0]
    assert verdict.change is not None
    assert verdict.change.low == -1
    assert "to 100.0)" in verdict.sentence or "cannot tell" in verdict.sentence


def test_a_fall_by_just_the_threshold_counts_alone_too() -> None:
    assert judge_change(results([0.5] * 3), results([0.25] * 3), Rule("threshold", 0.25)).outcome == "fail"


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_results(WORSE, tmp_path / "r.json")
    assert read_results(tmp_path / "r.json") == WORSE
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a result"),
        ('{"format": "pagoda-eval/1"}', "lacks or misspells 'setup'"),
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(FormatError, match=said):
        read_results(tmp_path / "r.json")


def test_changed_cases_worst_first() -> None:
    assert changed_cases(BEFORE, BARELY, "faithfulness")[0] == ("98", 0.8, 0.88)
    assert [row[0] for row in changed_cases(BEFORE, WORSE, "faithfulness")] == [str(i) for i in range(40, 50)]


def test_summaries_name_the_fallen_cases_and_open_without_a_network() -> None:
    report = judge_change(BEFORE, WORSE, Rule())
    text = markdown(report, BEFORE, WORSE)
    assert "| 40 | q40 | 0.900 | 0.000 |" in text
    assert "❌" in text
    assert 'failures="1"' in junit(report)
    html = page(WORSE, BEFORE, report)
    assert "http" not in html
    assert "was 0.900" in html
    assert "&lt;b&gt;" in page(Results(SETUP, (CaseResult("1", "<b>", None, {}, {}),)))


def test_testset_reads_ragas_names_and_names_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"user_input": "q", "response": "a", "retrieved_contexts": ["c"], "ground_truth": "r", "tag": 1}\n'
    )
    assert read_testset(path).cases == (Case("1", "q", "a", ("c",), "r", None, {"tag": 1}),)
    for line, said in (
        ("{", "line 2 is not JSON"),
        ('{"question": " "}', "line 2 has no question"),
        ('{"question": "q", "contexts": "c"}', "line 2: contexts is not a list"),
        ('{"id": 1, "question": "q"}', "two cases have the id '1'"),
    ):
        path.write_text(f'{{"question": "q"}}\n{line}\n')
        with pytest.raises(FormatError, match=said):
            read_testset(path)


def test_digest_is_of_what_is_asked_not_of_the_answers(tmp_path: Path) -> None:
    digests = []
    for answer in ("a", "b"):
        (tmp_path / "t.jsonl").write_text(f'{{"question": "q", "answer": "{answer}"}}\n')
        digests.append(read_testset(tmp_path / "t.jsonl").sha256)
    assert digests[0] == digests[1]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    cases = [Case(str(i), "q", "Paris", None, "Paris") for i in range(5)]
    plan = Plan(tuple(find(("exact_match", "mrr"))), cases_at_once=1)
    journal = Journal(tmp_path / "j", "setup")
    for result in asyncio.run(evaluate(plan, cases[:3])):
        journal.add(result)
    journal.close(delete=False)
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"id": "3", "ques')  # cut off in the middle
    again = Journal(tmp_path / "j", "setup")
    assert sorted(again.finished) == ["0", "1", "2"]
    assert again.finished["0"].scores == {"exact_match": 1}
    assert again.finished["0"].unjudged["mrr"] == "the case has no contexts and no reference_contexts"
    again.add(replace(again.finished["0"], id="3"))
    again.close(delete=False)
    with pytest.raises(FormatError, match="another evaluation"):
        Journal(tmp_path / "j", "other")
    last = Journal(tmp_path / "j", "setup")
    assert sorted(last.finished) == ["0", "1", "2", "3"]
    last.close(delete=True)
    assert not (tmp_path / "j").exists()


def test_noise_of_a_metric_that_does_not_waver_is_none() -> None:
    cases = [Case("1", "q", "Paris", None, "Paris")]
    plan = Plan(tuple(find(("exact_match",))))
    done = asyncio.run(evaluate(plan, cases))
    assert asyncio.run(measure_noise(plan, cases, done)) == {"exact_match": 0}


def test_a_function_as_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_app.py").write_text(
        "def answer(question):\n    return {'answer': question.upper(), 'contexts': ['c']}\n"
        "async def plain(question):\n    return question\ndef bad(question):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    case = Case("1", "q", contexts=("old",))
    for target, answer, contexts in (("my_app:answer", "Q", ("c",)), ("my_app:plain", "q", ("old",))):
        with open_target(target) as ask:
            found = asyncio.run(ask(case))  # type: ignore[arg-type]
        assert (found.answer, found.contexts) == (answer, contexts)
    with open_target("my_app:bad") as ask, pytest.raises(PagodaError, match="neither a text"):
        asyncio.run(ask(case))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="module:function"), open_target("my_app:nothing"):
        pass


def test_ci_files_run_the_gate_and_overwrite_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, Pipeline(target="app:answer"))
    for name in FILES:
        text = (tmp_path / name).read_text()
        assert "pagoda eval run data/qa_testset.jsonl" in text
        assert "--target app:answer" in text
        assert "pagoda eval gate --baseline metrics/baseline.json" in text
    with pytest.raises(ConfigError, match="is there already"):
        write_files(tmp_path, Pipeline())


def test_ci_files_install_pagoda_or_say_what_to_set(tmp_path: Path) -> None:
    write_files(tmp_path / "told", Pipeline(install="pip install pagoda.whl"))
    write_files(tmp_path / "asks", Pipeline())
    for name in (".github/workflows/rag-eval.yml", ".gitlab/rag-eval.yml"):
        assert "pip install pagoda.whl" in (tmp_path / "told" / name).read_text()
        assert "PAGODA" not in (tmp_path / "told" / name).read_text()
        text = (tmp_path / "asks" / name).read_text()
        (line,) = [line for line in text.splitlines() if "pip install" in line]
        command = f"pip() {{ echo $2; }}; {line.partition('pip')[1]}{line.partition('pip')[2]}"
        unset = subprocess.run(["sh", "-c", command], env={}, capture_output=True, text=True, check=False)
        assert unset.returncode != 0
        assert "PAGODA: set this variable" in unset.stderr
        given = subprocess.run(["sh", "-c", command], env={"PAGODA": "a b"}, capture_output=True, text=True, check=True)
        assert given.stdout == "a b\n"
    github = yaml.safe_load((tmp_path / "asks" / ".github/workflows/rag-eval.yml").read_text())
    assert github["jobs"]["evaluate"]["env"] == {"PAGODA": "${{ vars.PAGODA }}"}


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (None, "pip install pagoda-llm==1.2"),
        ('{"url": "https://host/p.whl", "archive_info": {}}', "pip install https://host/p.whl"),
        (
            '{"url": "https://host/p.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "pip install git+https://host/p.git@abc",
        ),
        ('{"url": "file:///home/me/pagoda", "dir_info": {"editable": true}}', ""),
    ],
)
def test_a_job_installs_what_is_installed_here(direct_url: str | None, command: str) -> None:
    assert install_command(direct_url, "1.2") == command


def test_run_verb_writes_results_that_the_gate_reads(tmp_path: Path) -> None:
    lines = [{"question": f"q{i}", "answer": "Paris", "reference": "Paris" if i else "Rome"} for i in range(4)]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    command = [sys.executable, "-m", "pagoda", "eval", "run", "t.jsonl", "--metrics", "exact_match", "-o", "m/c.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read_results(tmp_path / "m" / "c.json")
    assert found.summary()["exact_match"]["mean"] == 0.75
    assert found.setup.judge == "none"
