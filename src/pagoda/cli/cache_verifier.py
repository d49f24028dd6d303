"""`pagoda cache train` and `pagoda cache evaluate`: making a verifier, and measuring one on pairs or on a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pagoda.cache.pairs import read_pairs
from pagoda.cache.picture import draw
from pagoda.cache.question_log import is_question_log, read_question_log
from pagoda.cache.report import log_report, pairs_report
from pagoda.cache.training import train
from pagoda.cache.verifier import load_verifier
from pagoda.cli.stopped import LOST, when_stopped
from pagoda.engine.embedder import DEFAULT_EMBEDDER, load_embedder
from pagoda.errors import ConfigError, OutputError

EMBEDDER_HELP = "Model that makes the vectors, as the server's --cache-embedder."


def train_verifier(
    pairs: Annotated[Path, typer.Argument(help="Lines {a, b, same}, plain or gzipped.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the verifier is written, as JSON.")],
    embedder: Annotated[str, typer.Option(help=EMBEDDER_HELP)] = DEFAULT_EMBEDDER,
    seed: Annotated[int, typer.Option(help="Of the networks and of how the pairs are divided.")] = 0,
) -> None:
    """Make a verifier of labelled pairs, for `pagoda serve --cache-verifier`. A minute for 20,000 pairs."""
    rows = read_pairs(pairs)
    about = f"{len(rows)} pairs of {pairs.name}; embedder {embedder}"
    with when_stopped(LOST):
        model = load_embedder(embedder, weights="q8_0")  # as the server computes
        verifier = train(rows, model, seed=seed, about=about, progress=lambda text: typer.echo(text, err=True))
    try:
        output.write_text(json.dumps(verifier.to_json(), separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from None
    typer.echo(f"{output}: trained on {len(rows)} pairs; measure it on others with `pagoda cache evaluate`")


def evaluate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS_OR_LOG",
            help="Lines {a, b, same} that were not trained on, or {question, answer} as --cache-log writes them.",
        ),
    ],
    verifier: Annotated[
        Path | None, typer.Option(help="What `pagoda cache train` made; Pagoda's own by default.")
    ] = None,
    embedder: Annotated[str, typer.Option(help=EMBEDDER_HELP)] = DEFAULT_EMBEDDER,
    plot: Annotated[Path | None, typer.Option(help="Draw wrong hits over the hit rate into this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how many true repeats are found at 2, 5, 10 and 20 % wrong hits, by cosine alone and by the verifier.

    A log is replayed: what a cache would have saved at each --cache-max-wrong is printed, too.
    """
    judge = load_verifier(verifier)
    log = read_question_log(file) if is_question_log(file) else None
    pairs = read_pairs(file) if log is None else []
    model = load_embedder(embedder, weights="q8_0")  # as the server computes
    if not judge.fits(model):
        raise ConfigError(f"the verifier was trained for another embedder than {embedder}: run `pagoda cache train`")
    report = pairs_report(pairs, judge, model) if log is None else log_report(log, judge, model)
    if plot is not None:
        try:
            plot.write_text(draw(report.curves, f"{report.about} of {file.name}"), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{plot}: cannot be written: {error.strerror}") from None
    typer.echo(json.dumps(report.shape) if as_json else report.text())
