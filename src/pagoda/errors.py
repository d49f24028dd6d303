"""Everything that Pagoda raises on purpose, as one tree.

    PagodaError
    ├── ConfigError          a flag, environment variable or settings file is wrong
    ├── SourceError          a model name leads nowhere, a download failed or has the wrong digest
    ├── FormatError          a file is truncated, hostile or inconsistent; says at which offset
    ├── UnsupportedError     well-formed, but this architecture, tensor type or feature is not supported
    ├── QualityError         what was made is worse than the user allows; says by how much
    ├── OutputError          a file cannot be written
    ├── CapacityError        it does not fit in memory; says by how much and what would fit
    ├── RequestError         a request is invalid (HTTP 400); names the parameter
    │   ├── ContextLengthError   prompt + max_tokens exceed the context
    │   └── ModelNotFoundError   the model named is not served here (HTTP 404)
    ├── GenerationError      the model computed nothing that an answer could be made of (HTTP 500); others are answered
    ├── OverloadedError      the queue is full (HTTP 429); says when to come back
    │   └── BudgetError      a key has used up what it may (HTTP 429), or may not use the model (HTTP 403)
    ├── DeadlineError        an answer would come, or has come, too late (HTTP 429 or 504)
    ├── UnavailableError     starting up or shutting down (HTTP 503); says when to come back
    ├── UpstreamError        no server behind the gateway could answer (HTTP 502 or 503); says which and why
    └── EngineError          the engine has stopped; says why

Users cause these, so each message carries the offending value and the remedy. What only our own mistake can
cause is an `assert`.
"""

from __future__ import annotations

from collections.abc import Mapping


class PagodaError(Exception):
    """Base of all errors that Pagoda raises on purpose."""


class ConfigError(PagodaError):
    """A flag, an environment variable or a settings file is wrong."""


class SourceError(PagodaError):
    """A model name cannot be turned into local files."""


class FormatError(PagodaError):
    """A file breaks its format. `offset` is the byte at which it does, where that is known."""

    def __init__(self, message: str, *, path: str | None = None, offset: int | None = None) -> None:
        where = "".join([f"{path}: " if path is not None else "", f"at byte {offset}: " if offset is not None else ""])
        super().__init__(where + message)
        self.path = path
        self.offset = offset


class UnsupportedError(PagodaError):
    """Well-formed input that Pagoda does not support."""


class QualityError(PagodaError):
    """What was made is worse than the user allows."""


class OutputError(PagodaError):
    """What was made cannot be written."""


class CapacityError(PagodaError):
    """Something does not fit in memory."""


class RequestError(PagodaError):
    """A request is invalid. `param` names the field, `code` is a short machine-readable reason."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(RequestError):
    """Prompt and requested output do not fit in the model's context."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")

    @classmethod
    def of(cls, max_context: int, num_prompt_tokens: int, max_tokens: int | None) -> ContextLengthError:
        """In OpenAI's words, which clients and routers look for. `max_tokens` None: until the context is full."""
        limit = f"This model's maximum context length is {max_context} tokens. However, "
        if num_prompt_tokens + 1 > max_context:
            return cls(
                f"{limit}your prompt resulted in {num_prompt_tokens} tokens. Please reduce the length of the prompt.",
                param="prompt",
            )
        return cls(
            f"{limit}you requested {num_prompt_tokens + (max_tokens or 1)} tokens ({num_prompt_tokens} in the prompt, "
            f"{max_tokens} in the completion). Please reduce the length of the prompt or max_tokens.",
            param="max_tokens",
        )


class ModelNotFoundError(RequestError):
    """A request names a model that is not served here."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="model_not_found")


class GenerationError(PagodaError):
    """The model's output for one request is useless; the engine goes on."""


class OverloadedError(PagodaError):
    """The queue is full. `retry_after` is in seconds, from the measured drain rate."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BudgetError(OverloadedError):
    """A key has used up what it may. `headers` say what is left; `code` is a short machine-readable reason."""

    def __init__(
        self, message: str, *, retry_after: float = 0.0, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.code = code
        self.headers = headers or {}


class DeadlineError(PagodaError):
    """An answer would come too late (`retry_after` in seconds), or has become so (None)."""

    def __init__(self, message: str, *, retry_after: float | None = None, code: str = "deadline_exceeded") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.code = code


class UnavailableError(PagodaError):
    """Not now: starting up or shutting down. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UpstreamError(PagodaError):
    """No server behind the gateway could answer. `retry_after` in seconds, where it may soon be otherwise."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineError(PagodaError):
    """The engine has stopped and can serve nothing more."""
