"""An evaluation in other people's formats: Markdown for a pull request, JUnit XML for a CI server."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as xml

from pagoda.evals.gate import GateReport, MetricVerdict
from pagoda.evals.results import Results

MARKS = {"pass": "✅", "fail": "❌", "unjudged": "⚠️"}
SHOWN = 10  # cases of a table of what changed


def changed_cases(baseline: Results, current: Results, metric: str) -> list[tuple[str, float, float]]:
    """(case id, score before, score now) of cases whose score differs, the deepest fall first."""
    before, now = baseline.scores(metric), current.scores(metric)
    both = [(i, before[i], now[i]) for i in before if i in now and before[i] != now[i]]
    return sorted(both, key=lambda row: row[2] - row[1])


def markdown(report: GateReport, baseline: Results, current: Results) -> str:
    """The verdict, a row a metric, and the cases that fell most."""
    lines = [f"## {MARKS[report.outcome]} Quality gate: {report.outcome}", ""]
    lines += [f"Not comparable: {why}" for why in report.incomparable]
    if report.verdicts:
        lines += ["| | metric | before | now | change | 95 % interval |", "|---|---|---|---|---|---|"]
        lines += [_row(verdict) for verdict in report.verdicts]
        lines += ["", *(f"- {verdict.sentence}" for verdict in report.verdicts)]
        lines += list(_fallen(report, baseline, current))
    lines += ["", _footer(current)]
    return "\n".join(lines) + "\n"


def _row(verdict: MetricVerdict) -> str:
    cells = [MARKS[verdict.outcome], verdict.metric, _number(verdict.before), _number(verdict.now)]
    if verdict.change is None:
        cells += ["", ""]
    else:
        cells += [f"{verdict.change.mean:+.3f}", f"{verdict.change.low:+.3f} to {verdict.change.high:+.3f}"]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _fallen(report: GateReport, baseline: Results, current: Results) -> Iterator[str]:
    questions = {case.id: case.question for case in current.cases}
    for verdict in report.verdicts:
        rows = changed_cases(baseline, current, verdict.metric)[:SHOWN]
        if verdict.outcome != "fail" or not rows:
            continue
        yield from ("", f"<details><summary>{verdict.metric}: cases that fell most</summary>", "")
        yield from ("| case | question | before | now |", "|---|---|---|---|")
        for case_id, before, now in rows:
            question = questions[case_id].replace("|", "\\|").replace("\n", " ")[:120]
            yield f"| {case_id} | {question} | {before:.3f} | {now:.3f} |"
        yield from ("", "</details>")


def _footer(current: Results) -> str:
    parts = [f"{len(current.cases)} cases", f"judge: {current.setup.judge}", f"{current.seconds:.0f} s"]
    if current.tokens:
        parts.append(f"{sum(current.tokens.values()):,} tokens of the judge")
    if current.cost_usd is not None:
        parts.append(f"${current.cost_usd:.4f}")
    return "; ".join(parts)


def junit(report: GateReport) -> str:
    """A test case a metric: failed, skipped where there is no verdict, or passed."""
    failed = sum(verdict.outcome == "fail" for verdict in report.verdicts)
    skipped = sum(verdict.outcome == "unjudged" for verdict in report.verdicts)
    suite = xml.Element(
        "testsuite",
        name="pagoda eval gate",
        tests=str(max(1, len(report.verdicts))),
        failures=str(failed),
        errors=str(int(bool(report.incomparable))),
        skipped=str(skipped),
    )
    for verdict in report.verdicts:
        case = xml.SubElement(suite, "testcase", classname="pagoda.eval", name=verdict.metric)
        if verdict.outcome == "fail":
            xml.SubElement(case, "failure", message=verdict.sentence)
        elif verdict.outcome == "unjudged":
            xml.SubElement(case, "skipped", message=verdict.sentence)
        else:
            xml.SubElement(case, "system-out").text = verdict.sentence
    if report.incomparable:
        case = xml.SubElement(suite, "testcase", classname="pagoda.eval", name="comparable")
        xml.SubElement(case, "error", message="; ".join(report.incomparable))
    return xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
