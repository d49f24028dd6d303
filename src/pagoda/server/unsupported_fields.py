"""Fields that Pagoda knows but does not serve: let through while they ask for nothing, refused by name otherwise.

A request that sends `"functions": null` or `"length_penalty": 1` wants nothing special; one that sends a list would get
a different answer from a server that ignores it. Fields that no API defines are refused by the schema itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagoda.errors import RequestError

# field → the values besides null that ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template": (),
    "detailed_thinking": (False,),
    "documents": ([],),
    "early_stopping": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "use_beam_search": (False,),
    "verbosity": (),
    "vllm_xargs": ({},),
    "web_search_options": (),
}


# fields of conversations, which text completions do not have
NEUTRAL_IN_COMPLETION: dict[str, tuple[Any, ...]] = {
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "thinking_token_budget": (),
    "tool_choice": ("none",),
    "tools": ([],),
}


def without_neutral(data: object, table: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> object:
    """`data` less the fields of `table` that ask for nothing.

    Raises RequestError naming one that asks for something. What is not an object is left to the schema.
    """
    if not isinstance(data, dict) or table.keys().isdisjoint(data):
        return data
    for name in table.keys() & data.keys():
        if data[name] is not None and data[name] not in table[name]:
            raise RequestError(f"{name} is not supported: leave it out", param=name, code="unsupported_parameter")
    return {name: value for name, value in data.items() if name not in table}
