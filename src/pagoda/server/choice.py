"""One choice of an answer as it grows, and what the request wants said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pagoda.server.logprob_json import TextOffsets
from pagoda.server.output_parser import OutputParser, Parsed
from pagoda.server.prompts import Prompt
from pagoda.types import TokenLogprobs, Usage


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What the request wants in its answer besides the text."""

    n: int = 1
    kept: int | None = None  # of these, those whose tokens were likeliest; None: all
    logprobs: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False  # in logprobs, a token is written "token_id:N"
    prompt_logprobs: bool = False
    include_usage: bool = False  # streams only
    continuous_usage: bool = False
    echo: bool = False  # completions only
    drop_output: bool = False  # max_tokens 0: the prompt alone is wanted
    include_cost: bool = False
    timings: bool = False  # how long prompt and answer have taken, in llama-server's form
    extra: Any = None  # what a dialect's answer says of its request


@dataclass(slots=True)
class Choice:
    """What has come of one choice so far. Streams, which have sent what came, keep no texts, ids and logprobs."""

    index: int
    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    usage: Usage | None = None
    parser: OutputParser | None = None  # chat: where text means more than itself
    parsed: Parsed = field(default_factory=Parsed)  # what the last delta has brought
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    offsets: TextOffsets | None = None  # where tokens begin in the text, for completions' logprobs
    new_line: bool = False  # its text has one; of llama-server's dialect
    started: bool = False  # its first chunk is out
    frame: tuple[bytes, bytes] | None = None  # what stands around the text in chunks that carry nothing else

    @property
    def completion_tokens(self) -> int:
        return self.usage.completion_tokens if self.usage else self.num_tokens


def mean_logprob(choice: Choice) -> float:
    """The mean log-probability of the choice's tokens."""
    return sum(one.chosen.logprob for one in choice.logprobs) / max(len(choice.logprobs), 1)
