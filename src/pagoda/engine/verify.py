"""From logits to tokens: the next one of each sequence, and after each draft token that proves right one more."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from pagoda.engine.logits import LogitsPlan, StepLogits
from pagoda.engine.masks import StepMasks
from pagoda.engine.sequence import SampledRun, Sequence
from pagoda.sampling.base import Sampled
from pagoda.types import Int32Array


def sample_first(logits: StepLogits, plan: LogitsPlan, masks: StepMasks | None) -> Sampled:
    """The next token of each of the plan's sequences. Nothing is accepted yet."""
    return _sample(logits, plan.sequences, plan.rows, masks, 0)


def verify(logits: StepLogits, plan: LogitsPlan, masks: StepMasks | None, first: Sampled) -> list[SampledRun]:
    """What the step samples for each of the plan's sequences; `first` is what `sample_first` gave.

    Row j of a sequence is sampled after the state has accepted the draft's first j tokens, with the random number of
    that position: the tokens are those that j more steps without drafts would give. Rows are sampled in waves, row j
    of all sequences whose drafts were right so far at once.
    """
    runs = [SampledRun([token], [one]) for token, one in zip(first.token_ids.tolist(), first.logprobs, strict=True)]
    for n, error in first.errors.items():
        runs[n] = SampledRun([], [], error)
    if plan.drafts:
        _verify_drafts(logits, plan, masks, runs)
    return runs


def _verify_drafts(logits: StepLogits, plan: LogitsPlan, masks: StepMasks | None, runs: list[SampledRun]) -> None:
    right = [n for n, seq in enumerate(plan.sequences) if seq in plan.drafts]
    drafts = {n: plan.drafts[plan.sequences[n]].tokens for n in right}
    row = 0
    while True:
        right = [n for n in right if len(drafts[n]) > row and runs[n].token_ids[row:] == [drafts[n][row]]]
        if not right:
            return
        for n in right:
            plan.sequences[n].sampler.accept(drafts[n][row])
        row += 1
        sampled = _sample(logits, [plan.sequences[n] for n in right], plan.rows[right] + row, masks, row)
        for i, n in enumerate(right):
            if i in sampled.errors:
                runs[n].error = sampled.errors[i]
            else:
                runs[n].token_ids.append(int(sampled.token_ids[i]))
                runs[n].logprobs.append(sampled.logprobs[i])


def _sample(
    logits: StepLogits, sequences: Seq[Sequence], rows: Int32Array, masks: StepMasks | None, row: int
) -> Sampled:
    """A token of each sequence from these rows, its `row`th."""
    states = [seq.sampler for seq in sequences]
    if masks is None:
        return logits.sample(states, rows)
    sampled = logits.sample(states, rows, masks.masks(sequences, row))
    sampled.errors.update(masks.errors(sequences, row))
    return sampled
