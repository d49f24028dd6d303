"""What all models of requests share: strictness, numbers as JSON has them, and texts that are bounded."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_TOKENS = 2**31 - 1
HOTTEST = 2.0  # temperature of the APIs of OpenAI and those like it


def _whole(value: object) -> object:
    """JSON does not tell 16 from 16.0, and neither do its clients."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Text = Annotated[str, Field(min_length=1)]
Int64 = Annotated[Int, Field(ge=-(2**63), le=2**63 - 1)]


class Strict(BaseModel):
    """No unknown fields, no conversions: "1" is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="null")


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, an empty text, or a container of such."""
    if isinstance(value, dict):
        return all(is_empty(inner) for inner in value.values())
    if isinstance(value, list):
        return all(is_empty(inner) for inner in value)
    return value is None or value == ""


def without_marks(data: object, known: frozenset[str]) -> object:
    """An object less `cache_control`, a mark for caches of providers, and less unknown fields that are empty."""
    if not isinstance(data, dict):
        return data
    return {k: v for k, v in data.items() if k in known or not (k == "cache_control" or is_empty(v))}
