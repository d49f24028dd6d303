"""The values that flow through Pagoda: Request → Sequence → StepPlan → Batch → StepResult → Delta.

Each is small and says what it owns. `Sequence`, which lives in the engine, is the only mutable one and is
defined there (`pagoda.engine.sequence`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pagoda.constraint import CompiledConstraint

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
UInt32Array = npt.NDArray[np.uint32]

FinishReason = Literal["stop", "length", "abort", "error"]
Fault = Literal["request", "model", "engine"]

BLOCK_SIZE = 16  # tokens in one KV block


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to pick tokens. Field names and defaults are vLLM's; validated by `pagoda.sampling.params.validate`."""

    n: int = 1
    max_tokens: int | None = 16  # None: until the context is full
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None  # None: none; 0: only the sampled token's; k: the k likeliest too
    prompt_logprobs: int | None = None  # -1 here and above: of all tokens
    logprob_token_ids: tuple[int, ...] = ()  # their logprobs too, where logprobs are asked for
    skip_special_tokens: bool = True

    # llama.cpp's samplers, under its names; each is off by default
    top_n_sigma: float = 0.0  # logits within so many standard deviations of the highest; 0: all
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0  # the temperature is within so much of `temperature`, and applied last
    dynatemp_exponent: float = 1.0
    mirostat: int = 0  # 1, 2: its version; in place of all cuts
    mirostat_tau: float = 5.0  # the surprise that is aimed at, in bits
    mirostat_eta: float = 0.1
    temperature_last: bool = False  # cuts see the model's own probabilities, as in llama.cpp
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1  # tokens of prompt and output that are looked at; -1: all
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")


@dataclass(frozen=True, eq=False, slots=True)
class LoadedAdapter:
    """A LoRA adapter in memory. Requests that carry the same one share blocks of the prefix cache by its digest."""

    name: str  # as requests call it
    digest: str  # of its files' content
    placed: object  # what the model that computes with it made of it, see `LoadedModel.place_adapter`


@dataclass(frozen=True, slots=True)
class PromptPieces:
    """A router's labels for the pieces of a prompt's text, all of one length: each for its piece and all before it."""

    labels: tuple[int, ...]  # 64 bits each
    share: float  # of the text that a piece is

    def last_block(self, place: int, num_tokens: int) -> int:
        """The KV block in which the piece at `place` ends, as if all of a prompt's tokens stood for equally much."""
        return max(0, math.ceil((place + 1) * self.share * num_tokens / BLOCK_SIZE - 1e-6) - 1)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be continued, `params.n` times."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    arrival: float  # time.monotonic() seconds
    priority: int = 0  # lower is served first, as in vLLM
    tenant: str = ""  # fairness is between tenants, and prefix blocks are not shared between them
    cache_salt: str = ""  # prefix blocks are shared only between equal salts
    adapter: LoadedAdapter | None = None  # None: the base model
    constraint: CompiledConstraint | None = None  # what the outputs must obey
    prediction: tuple[int, ...] | None = None  # tokens that the output will mostly be
    max_draft_tokens: int | None = None  # in one step; 0: no speculation
    pooled: bool = False  # no token is wanted, but the vector that the model makes of the prompt
    token_types: tuple[int, ...] = ()  # of the prompt's tokens, of encoders that tell texts apart by it; none: all 0
    report_progress: bool = False  # a Delta after each step that computes a part of the prompt
    shown_token_ids: frozenset[int] = frozenset()  # control tokens whose names are part of the text, all the same
    pieces: PromptPieces | None = None  # for whom listens to what the prefix cache holds

    @property
    def adapter_name(self) -> str | None:
        return None if self.adapter is None else self.adapter.name


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate token at one position. `rank` is 1 for the likeliest."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The chosen token at one position and the likeliest candidates there, likeliest first."""

    chosen: Logprob
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass over T tokens of B sequences, as the backend sees it.

    Sequence b owns tokens [seq_starts[b], seq_starts[b+1]), which stand at consecutive positions; after the step
    its KV holds context_lens[b] tokens. Position p of sequence b lives in block block_tables[g][b, p // 16], slot
    p % 16, of KV group g. Entries of blocks that a sliding window has given back are -1.

    Where the model has a state beside KV: sequence b begins at state state_starts[b], -1 where it has no tokens yet;
    after token t its state is saved as state_saves[t], unless that is -1. It may be saved over the one it began at.
    """

    tokens: Int32Array  # [T]
    positions: Int32Array  # [T]
    seq_starts: Int32Array  # [B + 1]
    context_lens: Int32Array  # [B]
    block_tables: tuple[Int32Array, ...]  # a KV group each: [B, max_blocks]
    logit_rows: Int32Array  # [R] indices into tokens whose logits are wanted
    hidden_rows: Int32Array = field(default_factory=lambda: np.empty(0, np.int32))  # [R2] of wanted hidden states
    token_types: Int32Array = field(default_factory=lambda: np.empty(0, np.int32))  # [T] or [0]: all of type 0
    adapters: tuple[object, ...] = ()  # that the step's sequences use, as `LoadedModel.place_adapter` gave them
    adapter_of: Int32Array | None = None  # [B] which of them, -1: none; None: no sequence uses any
    state_starts: Int32Array | None = None  # [B]; None: the model has no state
    state_saves: Int32Array | None = None  # [T]
    given: FloatArray | None = None  # [T, columns] what a model reads besides tokens (`Ops.given`)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a finished request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens whose KV came from the prefix cache
    accepted_prediction_tokens: int = 0  # of the request's own prediction, those that came true
    rejected_prediction_tokens: int = 0  # and those that were checked in vain
    draft_tokens: int = field(default=0, compare=False)  # guessed and checked, by whomever: how it came, not what
    accepted_draft_tokens: int = field(default=0, compare=False)
    cached: bool = False  # the answer was there already: nothing was computed


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How much of a prompt is computed."""

    total: int  # tokens
    cached: int  # of them, found in the prefix cache
    computed: int  # of them, those found there among them
    seconds: float  # since its first step was planned


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to choice `index` of a request; the last one of a choice has a finish_reason.

    `text` is what may be shown: whole characters only, nothing that may still become a stop string.
    `token_ids` and `logprobs` are those of this step's tokens, whether or not their text is out yet.
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id or stop string that ended it
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # on the first delta, when asked for
    usage: Usage | None = None  # of this choice, with finish_reason
    error: str | None = None  # with finish_reason "error"
    fault: Fault = "engine"  # who is at fault; an engine's fault stops everything, others fail one request
    embedding: FloatArray | None = None  # of a pooled request, with finish_reason "stop"
    prompt_progress: PromptProgress | None = None  # before the first token, when asked for


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """Times of a choice that has ended, in time.monotonic() seconds."""

    request_id: str
    tenant: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    arrival: float
    first_scheduled: float | None
    first_token: float | None
    finished: float
    adapter: str | None = None


class SequenceWork(NamedTuple):
    """What one step computed for one choice, in tokens. A tuple, because a step makes one for each of its choices."""

    request_id: str
    tenant: str
    adapter: str | None
    num_prompt_tokens: int  # of the prompt, for the first time
    num_decode_tokens: int  # after the prompt, for the first time
    num_draft_tokens: int  # guessed ahead, and checked
    num_recomputed_tokens: int  # computed before, and lost when the choice was preempted
    num_kv_tokens: int  # in its part of the cache after the step


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """What one drafter proposed, and what of it was kept."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()  # [longest draft] drafts whose token at that position was kept

    @property
    def num_accepted_tokens(self) -> int:
        return sum(self.accepted_per_position)

    def plus(self, num_proposed: int, num_accepted: int) -> DraftCounts:
        """The counts with one more draft, whose first num_accepted tokens were kept."""
        size = max(num_proposed, len(self.accepted_per_position))
        counts = [*self.accepted_per_position, *[0] * (size - len(self.accepted_per_position))]
        kept = tuple(count + (position < num_accepted) for position, count in enumerate(counts))
        return DraftCounts(self.num_drafts + 1, self.num_draft_tokens + num_proposed, kept)


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """Prefixes that the cache has come to hold, or has lost: keys of blocks, and labels of pieces of prompts."""

    kind: Literal["stored", "removed"]
    blocks: tuple[bytes, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """The facts of one engine step; `pagoda.observe` turns them into series. Counts are of this step alone."""

    deltas: tuple[Delta, ...] = ()
    finished: tuple[FinishedRequest, ...] = ()
    ttft_s: tuple[float, ...] = ()  # of choices that got their first token in this step
    inter_token_s: tuple[float, ...] = ()  # of every further token; those of one step share the time since the last
    queue_s: tuple[float, ...] = ()  # of requests scheduled for the first time
    num_running: int = 0
    num_waiting: int = 0
    num_preempted: int = 0
    num_prompt_tokens: int = 0  # computed, not taken from the cache
    num_generation_tokens: int = 0
    num_forced_tokens: int = 0  # of them, those that a constraint left no choice about, and that were not sampled
    drafts: Mapping[str, DraftCounts] = field(default_factory=dict)  # by drafter
    prefix_queries: int = 0  # tokens looked up in the prefix cache
    prefix_hits: int = 0  # tokens found there
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0  # held by sequences, cached free ones not counted
    kv_slots_wasted: int = 0  # slots of used blocks that hold no token
    step_s: float = 0.0  # wall time of the whole step
    forward_s: float = 0.0  # of the backend's forward pass
    sample_s: float = 0.0
    mask_s: float = 0.0  # of it, waiting for the token masks of constraints
    verify_s: float = 0.0  # of it, sampling after draft tokens
    draft_s: float = 0.0  # in drafters, before the forward pass
    work: tuple[SequenceWork, ...] = ()  # of each choice in the step
    prefix_changes: tuple[PrefixChange, ...] = ()  # in order; none while nobody listens
    ended: float = 0.0  # time.monotonic() seconds


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as it lies in a file: `data` is a memory-mapped uint8 view of `type` blocks, row-major.

    shape is (rows, columns) or (n,), the last dimension contiguous: a linear layer's weight is (out, in).
    """

    name: str
    type: str  # key into pagoda.formats.blocks.BLOCK_TYPES
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]
    part_of: str | None = field(default=None, kw_only=True)  # the file's tensor that this is some rows of

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes

    def rows(self) -> npt.NDArray[np.uint8]:
        """The bytes of each row, a view [rows, bytes of a row]. All dimensions but the last count rows."""
        return self.data.reshape(math.prod(self.shape[:-1]), -1)

    def part(self, start: int, stop: int) -> RawTensor:
        """Rows [start, stop) of a matrix as a tensor of its own, a view."""
        rows = self.data if self.data.ndim > 2 else self.data.reshape(self.shape[0], -1)
        data = rows[start:stop] if self.data.ndim > 2 else rows[start:stop].reshape(-1)
        name, shape = f"{self.name}[{start}:{stop}]", (stop - start, *self.shape[1:])
        return replace(self, name=name, shape=shape, data=data, part_of=self.part_of or self.name)

    def run(self, i: int, of: int, groups: int) -> RawTensor:
        """Run i of each group of a matrix whose rows are so many `groups` of `of` runs each, a view."""
        data = self.data.reshape(groups, of, -1)[:, i]
        name, shape = f"{self.name}[{i} of {of}]", (self.shape[0] // of, *self.shape[1:])
        return replace(self, name=name, shape=shape, data=data, part_of=self.part_of or self.name)

    def transposed(self) -> RawTensor:
        """A matrix of floats the other way round, a view: an element's bytes are data's last dimension."""
        rows, columns = self.shape
        data = self.data.reshape(rows, columns, -1).transpose(1, 0, 2)
        name, part_of = f"{self.name}.T", self.part_of or self.name
        return replace(self, name=name, shape=(columns, rows), data=data, part_of=part_of)

    def matrix(self, i: int) -> RawTensor:
        """Matrix i of a stack [N, rows, columns] as a tensor of its own, a view."""
        data, part_of = self.data.reshape(self.shape[0], -1)[i], self.part_of or self.name
        return replace(self, name=f"{self.name}[{i}]", shape=self.shape[1:], data=data, part_of=part_of)
