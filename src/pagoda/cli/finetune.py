"""`pagoda finetune`: an adapter for a model, trained on the weights that are served."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pagoda.cli.making import DEFAULT_MODEL, ModelArgument, find
from pagoda.cli.options import with_settings
from pagoda.cli.progress import step_progress
from pagoda.cli.stopped import when_stopped
from pagoda.errors import ConfigError
from pagoda.finetune.data.show import show
from pagoda.finetune.prepare import Prepared, prepare
from pagoda.finetune.run import check_packages, last_checkpoint
from pagoda.finetune.run import finetune as train
from pagoda.finetune.settings import FinetuneSettings

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the adapter, as peft writes it.", metavar="FOLDER")
]


@with_settings
def finetune(finetune: FinetuneSettings, model: ModelArgument = DEFAULT_MODEL, output: OutputOption = None) -> None:
    """Train a LoRA adapter over the model's weights as they are served: GGUF, GPTQ, AWQ, NF4 or 16-bit.

    --data is JSONL: OpenAI's chat format, prompt and completion, or text. Of a chat the assistant's words are learned,
    by the model's own template; --show 3 prints what that is. After an interrupt the same command goes on where it was.
    """
    if not finetune.show:
        check_packages()
        if output is None:
            raise ConfigError("-o is missing: the folder that the adapter is written to")
    found = find(model)
    with step_progress() as (steps, say):
        prepared = prepare(found, finetune, steps)
        for text in _about(prepared):
            say(text)
    if finetune.show:
        _show(prepared, finetune.show)
        return
    assert output is not None
    with when_stopped(lambda: _left(output)):
        record = train(prepared, output, line=_line, say=_say)
    _say(_summary(record))
    typer.echo(f"{output}  rank {finetune.rank}, {record['parameters']:,} parameters")


def _left(output: Path) -> str:
    """What an interrupted run has left."""
    found = last_checkpoint(output)
    if found is None:
        return "no checkpoint was written yet (--save-every): the same command begins anew"
    return f"the same command goes on from step {found.name.removeprefix('checkpoint-')}"


def _about(prepared: Prepared) -> list[str]:
    data = prepared.data
    tokens = sum(map(len, data.train))
    learned = sum(example.num_trained for example in data.train)
    lines = [
        f"{data.counts.records:,} records: {len(data.train):,} examples to train on, {len(data.held_out):,} held out",
        f"{tokens:,} tokens, of which {learned:,} are learned; the longest example has {max(map(len, data.train)):,}",
    ]
    return lines + data.counts.lines(prepared.max_length)


def _show(prepared: Prepared, count: int) -> None:
    for example in prepared.data.train[:count]:
        typer.echo(show(example, prepared.tokenizer, colors=sys.stdout.isatty()))
        typer.echo("")


def _summary(record: dict[str, object]) -> str:
    best = record["best_held_out_loss"]
    kept = "" if best is None else f"; kept the best, held-out loss {best:.4f}"
    return (
        f"{record['steps']} steps, {record['tokens_per_second']} tokens/s, "
        f"{record['peak_bytes'] / 1e6:,.0f} MB at most{kept}"  # type: ignore[operator]
    )


def _line(text: str) -> None:
    """Over the last one on a terminal, below it elsewhere."""
    end = "" if sys.stderr.isatty() else "\n"
    start = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def _say(text: str) -> None:
    _line(text)
    if sys.stderr.isatty():
        print(file=sys.stderr)
