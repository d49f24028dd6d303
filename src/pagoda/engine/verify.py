"""From logits to tokens: the next one of each sequence, and after each draft token that proves right one more."""

from __future__ import annotations

from pagoda.engine.logits import LogitsPlan, StepLogits
from pagoda.engine.sequence import SampledRun
from pagoda.sampling.base import Sampled


def verify(logits: StepLogits, plan: LogitsPlan, first: Sampled) -> list[SampledRun]:
    """What the step sampled for each of the plan's sequences; `first` is what its first row gave.

    Row j of a sequence is sampled after the state has accepted the draft's first j tokens, with the random number of
    that position: the tokens are those that j more steps without drafts would give. Rows are sampled in waves, row j
    of all sequences whose drafts were right so far at once.
    """
    runs = [SampledRun([token], [one]) for token, one in zip(first.token_ids.tolist(), first.logprobs, strict=True)]
    for n, error in first.errors.items():
        runs[n] = SampledRun([], [], error)
    if plan.drafts:
        _verify_drafts(logits, plan, runs)
    return runs


def _verify_drafts(logits: StepLogits, plan: LogitsPlan, runs: list[SampledRun]) -> None:
    right = [n for n, seq in enumerate(plan.sequences) if seq in plan.drafts]
    drafts = {n: plan.drafts[plan.sequences[n]].tokens for n in right}
    row = 0
    while True:
        right = [n for n in right if len(drafts[n]) > row and runs[n].token_ids[row:] == [drafts[n][row]]]
        if not right:
            return
        states = [plan.sequences[n].sampler for n in right]
        for n, state in zip(right, states, strict=True):
            state.accept(drafts[n][row])
        row += 1
        sampled = logits.sample(states, plan.rows[right] + row)
        for i, n in enumerate(right):
            if i in sampled.errors:
                runs[n].error = sampled.errors[i]
            else:
                runs[n].token_ids.append(int(sampled.token_ids[i]))
                runs[n].logprobs.append(sampled.logprobs[i])
