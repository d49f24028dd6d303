"""One HTML file of an evaluation that opens without a network: scores, their spread, what changed, and every case."""

from __future__ import annotations

from html import escape

from pagoda.evals.gate import GateReport
from pagoda.evals.results import CaseResult, Results

BINS = 20
BAR_WIDTH, BAR_HEIGHT = 12, 60  # of a histogram, pixels

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--soft:#6a737d;--line:#d8dee4;--good:#1a7f37;--bad:#cf222e;
--bar:#0969da;--old:#afb8c1}
@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--soft:#8b949e;--line:#30363d;--good:#3fb950;
--bad:#f85149;--bar:#58a6ff;--old:#484f58}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:0 auto;
padding:16px}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);padding:6px 8px;text-align:left;
vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.soft{color:var(--soft)}
.pass{color:var(--good)}.fail{color:var(--bad)}.unjudged{color:var(--soft)}summary{cursor:pointer}
.scroll{overflow-x:auto}svg{max-width:100%}ul{margin:4px 0;padding-left:20px}
"""


def page(current: Results, baseline: Results | None = None, report: GateReport | None = None) -> str:
    """The report of a run; beside its baseline, if there is one, with the gate's verdict."""
    parts = ["<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Evaluation</title>"]
    parts.append("<meta name='viewport' content='width=device-width,initial-scale=1'>")
    parts.append(f"<style>{STYLE}</style></head><body><h1>Evaluation</h1>")
    parts.append(f"<p class='soft'>{_about(current)}</p>")
    if report is not None:
        parts.append(_verdict(report))
    parts.append(_summary(current, baseline))
    parts += [_histogram(metric, current, baseline) for metric in current.setup.metrics]
    parts.append(_cases(current, baseline))
    parts.append("</body></html>\n")
    return "".join(parts)


def _about(current: Results) -> str:
    setup = current.setup
    said = [
        f"{len(current.cases)} cases",
        f"judge {setup.judge}",
        f"{setup.verdicts} verdicts",
        f"{current.seconds:.0f} s",
    ]
    return escape(", ".join([*said, f"answers: {setup.target}"] if setup.target else said))


def _verdict(report: GateReport) -> str:
    lines = [*report.incomparable, *(verdict.sentence for verdict in report.verdicts)]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2 class='{report.outcome}'>Gate: {report.outcome}</h2><ul>{items}</ul>"


def _summary(current: Results, baseline: Results | None) -> str:
    before = baseline.summary() if baseline is not None else {}
    rows = []
    for metric, found in current.summary().items():
        old = before.get(metric, {}).get("mean")
        interval = "" if found["low"] is None else f"{found['low']:.3f} – {found['high']:.3f}"
        cells = [f"<td>{escape(metric)}</td>", *(_cell(value) for value in (old, found["mean"]))]
        rows.append(f"<tr>{''.join(cells)}<td class='n'>{interval}</td><td class='n'>{found['unjudged']}</td></tr>")
    head = "<tr><th>metric<th class='n'>before<th class='n'>now<th class='n'>95 % interval<th class='n'>not judged</tr>"
    return f"<h2>Scores</h2><div class='scroll'><table>{head}{''.join(rows)}</table></div>"


def _cell(value: float | None) -> str:
    return f"<td class='n'>{'' if value is None else f'{value:.3f}'}</td>"


def _histogram(metric: str, current: Results, baseline: Results | None) -> str:
    """How many cases have which score: now as bars, before as a line of bars behind them."""
    series = [("var(--old)", _counts(baseline, metric)), ("var(--bar)", _counts(current, metric))]
    most = max(1, *(max(counts) for _, counts in series))
    bars = []
    for offset, (colour, counts) in enumerate(series):
        for i, count in enumerate(counts):
            height = count / most * BAR_HEIGHT
            x, y = i * BAR_WIDTH + offset * BAR_WIDTH / 2, BAR_HEIGHT - height
            bars.append(
                f"<rect x='{x:g}' y='{y:.1f}' width='{BAR_WIDTH / 2 - 1:g}' height='{height:.1f}' fill='{colour}'/>"
            )
    size = f"width='{BINS * BAR_WIDTH}' height='{BAR_HEIGHT}'"
    title = f"<title>Cases by {escape(metric)}, from 0 to 1</title>"
    return f"<h3>{escape(metric)}</h3><svg {size} role='img'>{title}{''.join(bars)}</svg>"


def _counts(results: Results | None, metric: str) -> list[int]:
    counts = [0] * BINS
    for score in results.scores(metric).values() if results is not None else ():
        counts[min(BINS - 1, int(score * BINS))] += 1
    return counts


def _cases(current: Results, baseline: Results | None) -> str:
    """Every case, the one that fell most (or scores least) first."""
    before = {case.id: case for case in baseline.cases} if baseline is not None else {}

    def rank(case: CaseResult) -> float:
        old = before.get(case.id)
        if old is None:
            return sum(case.scores.values())
        return sum(case.scores[m] - old.scores[m] for m in case.scores if m in old.scores)

    shown = "".join(_case(case, before.get(case.id)) for case in sorted(current.cases, key=rank))
    return f"<h2>Cases</h2>{shown}"


def _case(case: CaseResult, before: CaseResult | None) -> str:
    scores = []
    for metric, value in case.scores.items():
        old = None if before is None else before.scores.get(metric)
        moved = "" if old is None or old == value else f" <span class='soft'>(was {old:.3f})</span>"
        scores.append(f"{escape(metric)} {value:.3f}{moved}")
    scores += [f"<span class='unjudged'>{escape(m)}: {escape(why)}</span>" for m, why in case.unjudged.items()]
    reasons = "".join(
        f"<li>{escape(metric)}: {escape(', '.join(f'{k} {v}' for k, v in reason.items()))}</li>"
        for metric, rows in case.reasons.items()
        for reason in rows
    )
    return (
        f"<details><summary>{escape(case.id)}: {escape(case.question)}<br><span class='soft'>{'; '.join(scores)}</span>"
        f"</summary><p>{escape(case.answer or '')}</p><ul>{reasons}</ul></details>"
    )
