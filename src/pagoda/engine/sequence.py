"""One choice of one request on its way: it owes tokens, and every step computes some of them.

tokens [0, num_computed)             their KV is in the cache
tokens [num_computed, len(tokens))   owed: the uncomputed prompt, or the token sampled last
then num_pending tokens              owed: the running step samples them, so they are not known yet
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum, auto

from pagoda.constraint import TokenConstraint
from pagoda.engine.output import OutputText
from pagoda.kv.prefix import PROCESS_SECRET, prefix_root
from pagoda.kv.table import BlockTable
from pagoda.sampling.base import SamplerProtocol, SamplerState
from pagoda.types import (
    Delta,
    FinishedRequest,
    FinishReason,
    FloatArray,
    Int32Array,
    Request,
    SamplingParams,
    TokenLogprobs,
    Usage,
)

# text to show, finish reason, the stop id or string that ended it
Outcome = tuple[str, FinishReason | None, int | str | None]


class Status(Enum):
    PENDING = auto()  # a further choice, whose prompt its first sibling computes
    WAITING = auto()  # holds nothing; new or preempted
    RUNNING = auto()  # has a block table
    FINISHED = auto()


@dataclass(slots=True)
class SampledRun:
    """The tokens that one step sampled for a sequence: draft tokens that proved right, and one more.

    The sequence's sampler state has accepted all but the last; with an error, it has accepted all.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]  # one for each token; None where none were asked for
    error: str | None = None  # why the token after them cannot be sampled

    @property
    def num_right(self) -> int:
        """Draft tokens among them."""
        return len(self.token_ids) if self.error is not None else len(self.token_ids) - 1


class Sequence:
    """The only mutable value: prompt and output tokens, and where each part of the engine stands with them."""

    __slots__ = (
        "children",
        "constraint",
        "first_scheduled",
        "first_token",
        "index",
        "keys",
        "last_token",
        "max_len",
        "num_cached",
        "num_computed",
        "num_drafted",
        "num_lost",
        "num_pending",
        "num_predicted",
        "output",
        "pooled",
        "pools_all",
        "prefix_root",
        "prompt_len",
        "prompt_logprobs",
        "rank",
        "request",
        "sampler",
        "status",
        "stop_ids",
        "table",
        "takes_forced",
        "tokens",
    )

    def __init__(
        self,
        request: Request,
        index: int,
        *,
        order: int,
        max_len: int,
        stop_ids: frozenset[int],
        sampler: SamplerState,
        output: OutputText,
        constraint: TokenConstraint | None = None,
        pools_all: bool = False,
        prefix_secret: bytes = PROCESS_SECRET,
    ) -> None:
        self.request = request
        self.index = index
        self.rank = (request.priority, order, index)  # the lower, the earlier served and the later preempted
        self.max_len = max_len  # tokens, prompt and output together
        self.stop_ids = stop_ids  # each ends it, EOS among them
        self.sampler = sampler
        self.output = output
        self.constraint = constraint
        self.takes_forced = constraint is not None and _may_be_forced(request.params)
        self.pools_all = pools_all  # the hidden states of all prompt tokens are wanted
        self.pooled: FloatArray | None = None  # what the computed part of the prompt comes to, see `pooling.py`
        self.num_drafted = (0, 0)  # draft tokens that were checked, and that were kept
        self.num_predicted = (0, 0)  # tokens of the request's prediction that came true, and that did not
        self.tokens = array("i", request.prompt_token_ids)
        self.prompt_len = len(self.tokens)
        self.num_computed = 0
        self.num_lost = 0  # tokens that were computed before the last preemption
        self.num_pending = 0  # 0 or 1
        self.num_cached = 0  # of the prompt, found in the prefix cache when first scheduled
        self.status = Status.PENDING if index else Status.WAITING
        self.table: BlockTable | None = None
        digest = None if request.adapter is None else request.adapter.digest
        self.prefix_root = prefix_root(request.cache_salt, digest, request.tenant, prefix_secret)
        self.keys: list[bytes] = []  # prefix keys of the full blocks, grown on demand
        self.children: list[Sequence] = []  # choices to fork off once the prompt is computed
        scored = request.params.prompt_logprobs is not None and index == 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = [None] if scored else None
        self.first_scheduled: float | None = None  # times in time.monotonic() seconds
        self.first_token: float | None = None
        self.last_token: float | None = None

    def __repr__(self) -> str:
        state = f"{self.num_computed}/{self.num_tokens} computed, {self.status.name.lower()}"
        return f"<Sequence {self.request.id}[{self.index}] {state}>"

    @property
    def num_tokens(self) -> int:
        """Prompt and output, with the token that is being sampled."""
        return len(self.tokens) + self.num_pending

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def num_prompt_logprobs_due(self) -> int:
        """Prompt tokens whose logprobs are still to come."""
        return 0 if self.prompt_logprobs is None else self.prompt_len - len(self.prompt_logprobs)

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether something is wanted of every prompt token, so that each has to be computed."""
        return self.pools_all or self.num_prompt_logprobs_due > 0

    @property
    def num_completion(self) -> int:
        """Output tokens that anybody sees."""
        return 0 if self.request.pooled else self.num_outputs

    def take_prompt_logprobs(self, sampler: SamplerProtocol, logits: FloatArray, targets: Int32Array) -> None:
        """logits[i] predicts targets[i], the prompt tokens whose logprobs are due next. ValueError: not finite."""
        assert self.prompt_logprobs is not None
        num_top = self.request.params.prompt_logprobs or 0
        self.prompt_logprobs.extend(sampler.prompt_logprobs(logits, targets, num_top))

    @property
    def ends_with_next(self) -> bool:
        """Whether the next token reaches max_len."""
        return len(self.tokens) + 1 >= self.max_len

    def append(self, run: SampledRun) -> Delta:
        """Take sampled tokens in, and what the constraint forces after them, up to the first that ends the sequence.

        If one does, the Delta has a finish_reason.
        """
        before = len(self.tokens)
        self.num_pending = 0
        text, reason, stop = self._take(run.token_ids)
        if reason is None and run.error is None:
            self.sampler.accept(run.token_ids[-1])
            if self.takes_forced and (forced := self._forced()):
                forced_text, reason, stop = self._take(forced)
                text += forced_text
                for token_id in forced:
                    self.sampler.accept(token_id)
        token_ids = tuple(self.tokens[before:])
        logprobs: tuple[TokenLogprobs, ...] | None = None
        if self.request.params.logprobs is not None:
            logprobs = tuple(one for one in run.logprobs[: len(token_ids)] if one is not None)
        prompt_logprobs = self.prompt_logprobs if before == self.prompt_len else None
        return Delta(
            self.request.id,
            self.index,
            text,
            token_ids,
            logprobs,
            reason,
            stop,
            tuple(prompt_logprobs) if prompt_logprobs is not None else None,
            self.usage() if reason is not None else None,
        )

    def _take(self, token_ids: Seq[int]) -> Outcome:
        """Append tokens up to the first that ends the sequence."""
        text = ""
        for token_id in token_ids:
            self.tokens.append(token_id)
            shown, reason, stop = self._after(token_id)
            text += shown
            if reason is not None:
                return text, reason, stop
        return text, None, None

    def _after(self, token_id: int) -> Outcome:
        """What the last token shows, and whether it ends the sequence."""
        params = self.request.params
        if token_id in self.stop_ids and self.num_outputs > params.min_tokens:
            shown = self.output.push(token_id)[0] if params.include_stop_str_in_output else ""
            stop_reason = token_id if token_id in params.stop_token_ids else None
            return shown + self.output.finish()[0], "stop", stop_reason
        text, matched = self.output.push(token_id)
        if matched is not None:
            return text, "stop", matched
        is_finished = False
        if self.constraint is not None:
            self.constraint.accept(token_id)
            is_finished = self.constraint.finished
        if not is_finished and len(self.tokens) < self.max_len:
            return text, None, None
        rest, matched = self.output.finish()
        return text + rest, "stop" if is_finished or matched is not None else "length", matched

    def _forced(self) -> Seq[int]:
        """The tokens that the constraint leaves no choice about; none that would end the sequence before min_tokens."""
        assert self.constraint is not None
        forced = self.constraint.forced()
        for i, token_id in enumerate(forced):
            if token_id in self.stop_ids and self.num_outputs + i < self.request.params.min_tokens:
                return forced[:i]
        return forced

    def usage(self) -> Usage:
        return Usage(self.prompt_len, self.num_completion, self.num_cached, *self.num_predicted, *self.num_drafted)

    def count_drafted(self, num_proposed: int, num_right: int, *, predicted: bool) -> None:
        """The first num_right of a draft's num_proposed tokens were right; predicted: by the request itself."""
        self.num_drafted = (self.num_drafted[0] + num_proposed, self.num_drafted[1] + num_right)
        if predicted:
            accepted, rejected = self.num_predicted
            self.num_predicted = (accepted + num_right, rejected + num_proposed - num_right)

    def ended(self, reason: FinishReason, now: float) -> FinishedRequest:
        """The facts of the whole life."""
        return FinishedRequest(
            request_id=self.request.id,
            tenant=self.request.tenant,
            finish_reason=reason,
            prompt_tokens=self.prompt_len,
            completion_tokens=self.num_completion,
            cached_tokens=self.num_cached,
            arrival=self.request.arrival,
            first_scheduled=self.first_scheduled,
            first_token=self.first_token,
            finished=now,
            adapter=self.request.adapter_name,
        )


def _may_be_forced(params: SamplingParams) -> bool:
    """Whether a forced token needs no sampling: nothing but the constraint could forbid it, nobody asks how likely it
    was, and nothing learns from that."""
    forbids = params.allowed_token_ids is not None or params.bad_words
    return not forbids and params.logprobs is None and not params.mirostat
