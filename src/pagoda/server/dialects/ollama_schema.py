"""What requests to Ollama's API may say. Beyond it: `docs/doors.md`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pagoda.server.dialects.messages_schema import Marked
from pagoda.server.schema import StopText
from pagoda.server.schema_base import MAX_TOKENS, Int, Int64, Strict
from pagoda.server.schema_output import MAX_TOOLS, Tool

KeepAlive = Int | float | str  # harmless: the model stays
Format = Literal["", "json"] | dict[str, Any]
Think = bool | Literal["low", "medium", "high", "max"]


class OllamaOptions(Strict):
    """How tokens are picked. What is not said is Pagoda's default."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[Int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0)] | None = None
    repeat_last_n: Literal[-1] | None = None  # penalties are over the whole context
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Int64 | None = None
    num_predict: Annotated[Int, Field(ge=-2, le=MAX_TOKENS)] | None = None  # below 0: no limit
    stop: StopText | Annotated[list[StopText], Field(max_length=128)] | None = None
    mirostat: Annotated[Int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] | None = None
    # harmless: where and how, not what; num_ctx only where there is as much
    num_ctx: Annotated[Int, Field(ge=1, le=MAX_TOKENS)] | None = None
    num_keep: Int | None = None
    num_batch: Int | None = None
    num_gpu: Int | None = None
    main_gpu: Int | None = None
    num_thread: Int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    numa: bool | None = None
    low_vram: bool | None = None


class OllamaFunction(Marked):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: Int | None = None


class OllamaCall(Marked):
    function: OllamaFunction
    id: str | None = None
    type: Literal["function"] | None = None


class OllamaMessage(Marked):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=1024)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaRequest(Marked):
    model: str
    stream: bool | None = None  # null: yes
    format: Format | None = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive | None = None
    think: Think | None = None
    logprobs: Literal[False] | None = None
    truncate: bool | None = None  # harmless: what is too long is refused
    shift: bool | None = None


class OllamaChatRequest(OllamaRequest):
    """POST /api/chat."""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True)] = Field(default_factory=list)
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


class OllamaGenerateRequest(OllamaRequest):
    """POST /api/generate."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None  # the prompt as it is, without the template


class OllamaShowRequest(Marked):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None  # its older name
    verbose: bool | None = None
