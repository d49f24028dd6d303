"""Examples to train on and examples held out, with a count of everything that was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pagoda.errors import ConfigError
from pagoda.finetune.data.records import Record, read_records
from pagoda.finetune.data.render import Example, Renderer, is_answer, is_empty

TooLong = Literal["drop", "cut"]


@dataclass(slots=True)
class Counts:
    """What became of a data set's records."""

    records: int = 0
    empty_answers: int = 0  # assistant's turns that say nothing, and records without any text to learn
    duplicates: int = 0
    too_long: int = 0
    cut: int = 0
    split_conversations: int = 0  # whose template needs an example for each answer
    ignored_keys: Counter[str] = field(default_factory=Counter)

    def lines(self, max_length: int) -> list[str]:
        """What a user should know, a sentence each; nothing where nothing was left out."""
        said = [
            (self.empty_answers, "answers are empty and were left out"),
            (self.duplicates, "examples are duplicates and were left out"),
            (
                self.too_long,
                f"examples are longer than {max_length} tokens and were left out (--too-long cut keeps them)",
            ),
            (self.cut, f"examples were cut at {max_length} tokens; nothing learns from them how to end"),
            (self.split_conversations, "conversations became an example for each answer, as the chat template needs"),
        ]
        lines = [f"{count:,} {what}" for count, what in said if count]
        return lines + [
            f"key {key!r} has no meaning here ({n:,} records)" for key, n in sorted(self.ignored_keys.items())
        ]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Examples in the order of their files. `digests` are SHA-256 of the files by name."""

    train: list[Example]
    held_out: list[Example]
    counts: Counts
    digests: dict[str, str]


def load_data(
    paths: Sequence[Path],
    renderer: Renderer,
    *,
    max_length: int,
    too_long: TooLong = "drop",
    held_out: float = 0.0,
    held_out_paths: Sequence[Path] = (),
    seed: int = 0,
    progress: Callable[[str, int, int | None], None] = lambda what, done, total: None,
) -> DataSet:
    """Read, render, and split. `held_out` is the share of examples to evaluate on, where no files for that are given.

    Duplicates are left out before the split, so that no example is on both sides. Raises what `read_records` and
    `Renderer.examples` raise; ConfigError where nothing is left to train on.
    """
    counts, digests = Counts(), {}
    seen: set[bytes] = set()
    sides = []
    for files in (held_out_paths, paths):  # what is held out is what stays out of the training data
        found: list[Example] = []
        for path in files:
            source = read_records(path)
            digests[str(path)] = source.sha256
            counts.ignored_keys += source.ignored_keys
            found += _examples(source.records, renderer, counts, max_length, too_long, seen, progress)
        sides.append(found)
    held, train = sides
    if not held_out_paths and held_out > 0:
        train, held = _split(train, held_out, seed)
    if not train:
        why = "; ".join(counts.lines(max_length)) or "no answers are to be learned"
        raise ConfigError(f"nothing is left to train on: {why}")
    return DataSet(train, held, counts, digests)


def _examples(
    records: Sequence[Record],
    renderer: Renderer,
    counts: Counts,
    max_length: int,
    too_long: TooLong,
    seen: set[bytes],
    progress: Callable[[str, int, int | None], None],
) -> list[Example]:
    made: list[Example] = []
    for number, record in enumerate(records):
        counts.records += 1
        counts.empty_answers += sum(is_answer(m) and is_empty(m) for m in record.messages)
        counts.empty_answers += record.trained is not None and not record.trained.strip()
        if record.trained is None or record.trained.strip():
            found = renderer.examples(record)
            counts.split_conversations += len(found) > 1
            for example in found:
                made += _fitting(example, record, counts, max_length, too_long, seen)
        progress("examples", number + 1, len(records))
    return made


def _fitting(
    example: Example, record: Record, counts: Counts, max_length: int, too_long: TooLong, seen: set[bytes]
) -> Iterable[Example]:
    """The example if it is new and fits, what fits of it, or the windows of a plain text."""
    if example.key in seen:
        counts.duplicates += 1
        return
    seen.add(example.key)
    is_plain_text = record.trained is not None and not record.prompt
    if len(example) <= max_length:
        yield example
    elif is_plain_text:
        for start in range(0, len(example), max_length):
            yield from _if_learned(_window(example, start, start + max_length))
    elif too_long == "cut":
        counts.cut += 1
        yield from _if_learned(_window(example, 0, max_length))
    else:
        counts.too_long += 1


def _window(example: Example, start: int, stop: int) -> Example:
    trained = example.trained[start:stop].copy()
    trained[:1] = False  # nothing stands before it
    return replace(example, ids=example.ids[start:stop], trained=trained)


def _if_learned(example: Example) -> Iterable[Example]:
    return [example] if example.trained.any() else []


def _split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """→ (to train on, held out), each in order. At least one is held out where two or more are there."""
    count = min(max(round(share * len(examples)), 1), len(examples) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(examples))[: max(count, 0)].tolist())
    train = [example for i, example in enumerate(examples) if i not in chosen]
    return train, [example for i, example in enumerate(examples) if i in chosen]
