"""What a sampler promises: one state for each sequence, one call for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pagoda.types import FloatArray, Int32Array, SamplingParams, TokenLogprobs, UInt32Array

TokenSequences = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """What grammars allow: bit i % 32 of allowed[m, i // 32] lets state rows[m] of the sampled batch take token i."""

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


@dataclass(frozen=True, slots=True)
class StateSpec:
    """What a sampler has to know of one choice of a request before its first token. `params` are validated."""

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    choice_index: int
    seed: int
    stop_token_ids: Sequence[int] = ()  # every id that would end it (EOS and the request's own): none before min_tokens
    bad_words: TokenSequences = ()  # never to be completed (`pagoda.sampling.bad_words.token_sequences`)
    dry_breakers: TokenSequences = ()  # nothing repeats across them (`pagoda.sampling.dry.Breakers`)


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Logits and whose next tokens to sample from them: state n reads row rows[n], or row n without `rows`.

    Choices that share a prompt share its last row.
    """

    logits: FloatArray  # [R, V]
    states: Sequence[SamplerState]
    rows: Int32Array | None = None  # [N]
    masks: TokenMasks | None = None


class SamplerProtocol(Protocol):
    """What every sampler does: the native one, the numpy reference, and the one over a device's ranked tokens."""

    def open(self, spec: StateSpec) -> SamplerState:
        """Start the state of a choice."""

    def sample(self, batch: SamplingBatch) -> Sampled:
        """Pick the next token of each state; nothing is accepted yet."""

    def prompt_logprobs(self, logits: FloatArray, targets: Int32Array, num_top: int) -> list[TokenLogprobs]:
        """How likely each target [R] was under its row of logits [R, V], with the num_top likeliest tokens there.

        Raises ValueError where logits are not finite.
        """
