"""`pagoda eval calibrate`: what a judge is worth, by people's labels, and how to read its probabilities."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson
import typer

from pagoda.cli.eval_judge import NOT_OF_JUDGES, JudgeSettings, open_judge
from pagoda.cli.options import with_settings
from pagoda.cli.progress import StepProgress, step_progress
from pagoda.config import EngineSettings
from pagoda.errors import FormatError
from pagoda.evals.calibration import Agreement, Calibration, agreement, cross_validated, fit
from pagoda.evals.calibration_plot import curve_svg
from pagoda.evals.cases import Case, read_testset
from pagoda.evals.judge import Judge

FEW_LABELS = 50  # with 25 of each kind an AUC of 0.75 is known to within 0.14 (95 %; Hanley & McNeil, 1982)


@partial(with_settings, without=NOT_OF_JUDGES)
def calibrate(
    labels: Annotated[Path, typer.Option("--labels", help="JSONL: question, answer, contexts, label.", metavar="FILE")],
    judge: JudgeSettings,
    engine: EngineSettings,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The calibration, as JSON.", metavar="FILE")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the calibration curve, as SVG.", metavar="FILE")
    ] = None,
) -> None:
    """Fit a judge's probabilities to labels: true where the passages state the answer, false where they do not.

    Figures are of labels that the fit has not seen (five parts, each judged by the other four).
    """
    cases = read_testset(labels).cases
    truth = [_label(case, labels) for case in cases]
    with open_judge(judge, engine) as opened, step_progress() as (show, _):
        logits = asyncio.run(_logits(opened.judge, list(cases), show))
    try:
        found = fit(logits, truth)
        raw, fitted = agreement([Calibration().probability(x) for x in logits], truth), cross_validated(logits, truth)
    except ValueError as error:
        raise FormatError(str(error), path=str(labels)) from None
    typer.echo(worth_of(raw, fitted))
    if plot is not None:
        plot.write_text(curve_svg(raw, fitted))
    if output is not None:
        record = {
            **asdict(found),
            "judge": opened.identity,
            "labels": len(truth),
            "auc": fitted.auc,
            "kappa": fitted.kappa,
        }
        output.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")


def _label(case: Case, path: Path) -> bool:
    label = case.extra.get("label")
    if not isinstance(label, (bool, int)) or case.answer is None or case.contexts is None:
        raise FormatError(
            f"case {case.id!r} lacks an answer, contexts, or a label that is true or false", path=str(path)
        )
    return bool(label)


async def _logits(judge: Judge, cases: list[Case], show: StepProgress) -> list[float]:
    done = 0

    async def one(case: Case) -> float:
        nonlocal done
        found = await judge.support_logit(case.contexts or (), case.question, case.answer or "")
        done += 1
        show("labels", done, len(cases))
        return found

    return list(await asyncio.gather(*map(one, cases)))


def worth_of(raw: Agreement, fitted: Agreement) -> str:
    """What is printed: figures of the judge as it is and of its calibrated probabilities, and what they mean."""
    rows = [f"{'':14} AUC    kappa  Brier"]
    rows += [
        f"{name:14} {found.auc:.3f}  {found.kappa:5.2f}  {found.brier:.3f}"
        for name, found in (("uncalibrated", raw), ("calibrated", fitted))
    ]
    if fitted.num_labels < FEW_LABELS:
        few = f"{fitted.num_labels} labels are too few to say what it is worth as a judge: label {FEW_LABELS} or more"
        return "\n".join([*rows, few])
    worth = "good" if fitted.auc >= 0.9 else "fair" if fitted.auc >= 0.75 else "poor"
    return "\n".join([*rows, f"{fitted.num_labels} labels; as a judge it is {worth} at telling true from false"])
