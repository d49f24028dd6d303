"""What a sampler promises: one state for each sequence, one call for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pagoda.types import FloatArray, Int32Array, SamplingParams, TokenLogprobs

UInt32Array = npt.NDArray[np.uint32]
TokenSequences = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """What grammars allow in this step: bit i % 32 of allowed[m, i // 32] lets token i into sampled row rows[m]."""

    rows: Int32Array  # [M], without repeats
    allowed: UInt32Array  # [M, ceil(V / 32)]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token for each row. A row named in `errors` has none: its token id means nothing."""

    token_ids: Int32Array  # [N]
    logprobs: list[TokenLogprobs | None]  # [N], None where none were asked for
    errors: dict[int, str] = field(default_factory=dict)  # row -> why no token can be chosen


class SamplerState(Protocol):
    """What sampling knows of one sequence (one choice of one request): its params, counts and place in the stream."""

    @property
    def num_outputs(self) -> int:
        """Tokens accepted so far; the position of the next one."""

    def accept(self, token_id: int) -> None:
        """The token was appended to the output."""

    def rewind(self, num_outputs: int) -> None:
        """Forget all accepted tokens but the first num_outputs."""


class SamplerProtocol(Protocol):
    """Both samplers, native and reference, are used like this."""

    def open(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        choice_index: int,
        seed: int,
        *,
        stop_token_ids: Sequence[int] = (),
        bad_words: TokenSequences = (),
    ) -> SamplerState:
        """Start a sequence. `params` are validated.

        stop_token_ids: every id that would end it (EOS and the request's own), held back until min_tokens;
        bad_words: token sequences never to be completed (`pagoda.sampling.bad_words.token_sequences`).
        """

    def sample(
        self,
        logits: FloatArray,
        states: Sequence[SamplerState],
        *,
        rows: Int32Array | None = None,
        masks: TokenMasks | None = None,
    ) -> Sampled:
        """Pick the next token of each state from logits [R, V]; nothing is accepted yet.

        State n reads row rows[n], or row n without `rows`: choices that share a prompt share its last row.
        """

    def prompt_logprobs(self, logits: FloatArray, targets: Int32Array, num_top: int) -> list[TokenLogprobs]:
        """How likely each target [R] was under its row of logits [R, V], with the num_top likeliest tokens there.

        Raises ValueError where logits are not finite.
        """
