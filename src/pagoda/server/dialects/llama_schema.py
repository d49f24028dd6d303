"""What requests to llama-server's /completion and /infill may say. Beyond it: `docs/doors.md`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pagoda.server.dialects.messages_schema import Marked
from pagoda.server.schema import StopText
from pagoda.server.schema_base import MAX_TOKENS, Int, Int64, Strict, TokenIds
from pagoda.server.schema_output import Schema

# name of a sampler → the fields that it needs
SAMPLERS: dict[str, tuple[str, ...]] = {
    "penalties": ("repeat_penalty", "presence_penalty", "frequency_penalty"),
    "dry": ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    "top_n_sigma": ("top_n_sigma",),
    "top_k": ("top_k",),
    "typ_p": ("typical_p",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc": ("xtc_probability", "xtc_threshold"),
    "temperature": ("temperature", "dynatemp_range", "dynatemp_exponent"),
    "infill": (),
}
SamplerName = Literal[
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "typical_p", "top_p", "min_p", "xtc", "temperature", "infill"
]

Pair = Annotated[list[float | bool], Field(min_length=2, max_length=2)]


class LlamaSampling(Marked):
    """How tokens are picked. What is not said is Pagoda's default."""

    model: str | None = None
    n_predict: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None  # -1: no limit
    stream: bool | None = None
    stop: Annotated[list[StopText], Field(max_length=128)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=100)] | None = None
    dynatemp_exponent: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_n_sigma: Annotated[float, Field(ge=-1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    xtc_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_last_n: Literal[-1] | None = None  # penalties are over the whole context
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None = None
    dry_penalty_last_n: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    dry_sequence_breakers: Annotated[list[StopText], Field(max_length=32)] | None = None
    mirostat: Annotated[Int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Int64 | None = None  # below 0, and 2**32 - 1: another each time
    ignore_eos: bool | None = None
    logit_bias: (
        Annotated[list[Annotated[list[float | bool], Field(min_length=2, max_length=2)]], Field(max_length=1024)] | None
    ) = None
    grammar: str | None = None
    json_schema: Schema | None = None
    n_probs: Annotated[Int, Field(ge=0, le=MAX_TOKENS)] | None = None
    samplers: Annotated[list[SamplerName], Field(max_length=32)] | None = None  # others are off; the order is Pagoda's
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    response_fields: Annotated[list[str], Field(max_length=128)] | None = None
    # harmless: where and how, not what
    cache_prompt: bool | None = None
    id_slot: Int64 | None = None
    n_keep: Int64 | None = None
    n_discard: Int64 | None = None
    min_keep: Literal[0] | None = None
    n_indent: Literal[0] | None = None
    n_cache_reuse: Int64 | None = None
    t_max_prompt_ms: Int64 | None = None
    t_max_predict_ms: Int64 | None = None
    post_sampling_probs: Literal[False] | None = None

    @model_validator(mode="after")
    def check_bias(self) -> LlamaSampling:
        """Pairs of a token's id and its bias; `false` bans the token."""
        for token, bias in self.logit_bias or ():
            if isinstance(token, bool) or token != int(token) or not 0 <= token < 2**31:
                raise ValueError("logit_bias: a pair begins with the id of a token")
            if bias is True or not -100 <= bias <= 100:
                raise ValueError("logit_bias: a bias is false, or a number from -100 to 100")
        return self


class LlamaCompletionRequest(LlamaSampling):
    """POST /completion."""

    prompt: str | Annotated[TokenIds, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]


class LlamaExtra(Strict):
    filename: str = ""
    text: str = ""


class LlamaTokenizeRequest(Strict):
    """POST /tokenize, as llama-server takes it: `content` is a text, or texts and ids mixed."""

    model: str | None = None
    content: str | list[str | Int]
    add_special: bool | None = None  # before a first text alone
    parse_special: bool | None = None
    with_pieces: bool | None = None


class InfillRequest(LlamaSampling):
    """POST /infill."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[LlamaExtra], Field(max_length=1024)] | None = None
    prompt: str | None = None  # behind the prefix
