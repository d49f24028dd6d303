"""`pagoda cache train` and `pagoda cache evaluate`: making a verifier, and measuring one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pagoda.cache.evaluation import LEVELS, Curve, curve
from pagoda.cache.pairs import read_pairs
from pagoda.cache.picture import draw
from pagoda.cache.training import train, vectors_of
from pagoda.cache.verifier import load_verifier
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
    model = load_embedder(embedder, weights="q8_0")  # as the server computes
    about = f"{len(rows)} pairs of {pairs.name}; embedder {embedder}"
    verifier = train(rows, model, seed=seed, about=about, progress=lambda text: typer.echo(text, err=True))
    try:
        output.write_text(json.dumps(verifier.to_json(), separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from None
    typer.echo(f"{output}: trained on {len(rows)} pairs; measure it on others with `pagoda cache evaluate`")


def evaluate(
    pairs: Annotated[Path, typer.Argument(help="Lines {a, b, same}, plain or gzipped, that were not trained on.")],
    verifier: Annotated[
        Path | None, typer.Option(help="What `pagoda cache train` made; Pagoda's own by default.")
    ] = None,
    embedder: Annotated[str, typer.Option(help=EMBEDDER_HELP)] = DEFAULT_EMBEDDER,
    plot: Annotated[Path | None, typer.Option(help="Draw wrong hits over repeats found into this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how many true repeats are found at 2, 5, 10 and 20 % wrong hits, by cosine alone and by the verifier."""
    rows, judge = read_pairs(pairs), load_verifier(verifier)
    model = load_embedder(embedder, weights="q8_0")  # as the server computes
    if not judge.fits(model):
        raise ConfigError(f"the verifier was trained for another embedder than {embedder}: run `pagoda cache train`")
    same = [pair.same for pair in rows]
    if all(same) or not any(same):
        raise ConfigError(f"{pairs}: all pairs have the same label, so nothing can be measured")
    left, right = vectors_of(rows, model)
    odds = judge.of_pairs([(pair.a, pair.b) for pair in rows], left, right)
    curves = [curve("cosine", np.einsum("nd,nd->n", left, right), same), curve("verifier", odds, same)]
    if plot is not None:
        try:
            plot.write_text(draw(curves, f"{len(rows)} pairs of {pairs.name}"), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{plot}: cannot be written: {error.strerror}") from None
    shape = report(curves, same)
    typer.echo(json.dumps(shape) if as_json else as_text(shape))


def report(curves: Sequence[Curve], same: Sequence[bool]) -> dict[str, Any]:
    return {
        "pairs": len(same),
        "same": sum(same),
        "found": {one.name: {f"{level:g}": round(one.found_at(level), 4) for level in LEVELS} for one in curves},
        "from_score": {one.name: {f"{level:g}": one.score_at(level) for level in LEVELS} for one in curves},
    }


def as_text(shape: dict[str, Any]) -> str:
    lines = [
        f"{shape['pairs']} pairs, {shape['same']} of them of one meaning; true repeats found:",
        "wrong hits   " + "".join(f"{name:>10}" for name in shape["found"]),
    ]
    for level in LEVELS:
        found = "".join(f"{shape['found'][name][f'{level:g}']:>10.1%}" for name in shape["found"])
        lines.append(f"{f'{level:.0%}':<13}{found}")
    return "\n".join(lines)
