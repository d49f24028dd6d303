"""`pagoda eval testset`: drafts of cases from documents."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson
import typer

from pagoda.cli.eval_judge import NOT_OF_JUDGES, JudgeSettings, open_judge
from pagoda.cli.options import with_settings
from pagoda.cli.progress import StepProgress, step_progress
from pagoda.cli.stopped import LOST, when_stopped
from pagoda.config import EngineSettings
from pagoda.errors import ConfigError
from pagoda.evals.drafts import Draft, draft_cases, read_passages, tries
from pagoda.evals.judge import Judge


@partial(with_settings, without=NOT_OF_JUDGES)
def draft_testset(
    documents: Annotated[Path, typer.Argument(help="Folder of .md, .txt or .rst files.", metavar="DOCS")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL file of drafts.", metavar="FILE")],
    judge: JudgeSettings,
    engine: EngineSettings,
    count: Annotated[int, typer.Option("--count", help="Cases to draft.", metavar="INT", min=1)] = 20,
) -> None:
    """Draft a test set from documents: a person has to review it before it measures anything.

    Of five questions three take one passage, one takes two, one has no answer in the documents. Each draft is marked
    "reviewed": false.
    """
    if output.exists():
        raise ConfigError(f"--output: {output} is there already; drafts overwrite nothing")
    passages = read_passages(documents)
    with open_judge(judge, engine) as opened, when_stopped(LOST), step_progress() as (show, _):
        drafts = asyncio.run(_all(opened.judge, passages, count, show))
    output.write_bytes(b"".join(orjson.dumps(draft.as_line(i)) + b"\n" for i, draft in enumerate(drafts, 1)))
    if len(drafts) < count:
        typer.echo(
            f"of {tries(count)} tries no more could be kept: the others were no question, asked twice, or the judge "
            "itself did not find their answers in the passages; a larger --judge keeps more",
            err=True,
        )
    typer.echo(f"wrote {len(drafts)} of {count} drafts to {output}; review them before they measure anything")


async def _all(judge: Judge, passages: list[str], count: int, show: StepProgress) -> list[Draft]:
    drafts = []
    async for draft in draft_cases(judge, passages, count):
        drafts.append(draft)
        show("drafts", len(drafts), count)
    return drafts
