"""How many bytes and operations the engine's steps need, and what the machine can do of both a second.

    bytes of a step      = weights + KV bytes of a token · KV tokens that its sequences see
    operations of a step = 2 · weights of the model · tokens computed

A step's point on the roofline is its operations over its bytes; left of `ridge` the memory is the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.types import StepResult


@dataclass(frozen=True, slots=True)
class Roofline:
    """What a step costs on this model, and the measured ceilings; a ceiling of None has not been measured."""

    weight_bytes: float  # read in each step
    kv_token_bytes: float
    token_operations: float  # of one token, without attention
    bandwidth: float | None = None  # bytes/s
    peak: float | None = None  # operations/s
    source: str = ""  # of the ceilings, in words

    def bytes_of(self, step: StepResult) -> float:
        """Bytes that the step had to read; 0 where it computed nothing."""
        if not step.work:
            return 0.0
        return self.weight_bytes + self.kv_token_bytes * sum(row.num_kv_tokens for row in step.work)

    def operations_of(self, step: StepResult) -> float:
        return self.token_operations * sum(num_tokens(step))

    @property
    def ridge(self) -> float | None:
        """Operations per byte where both ceilings are reached at once."""
        return self.peak / self.bandwidth if self.peak and self.bandwidth else None


def num_tokens(step: StepResult) -> tuple[int, int, int]:
    """Tokens that the step computed: (of prompts, of answers with drafts, once more)."""
    prompt = decode = again = 0
    for row in step.work:
        prompt += row.num_prompt_tokens
        decode += row.num_decode_tokens + row.num_draft_tokens
        again += row.num_recomputed_tokens
    return prompt, decode, again
