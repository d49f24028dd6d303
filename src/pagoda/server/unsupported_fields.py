"""Fields that Pagoda knows but does not serve: let through while they ask for nothing, refused by name otherwise.

A request that sends `"tools": null` or `"best_of": 1` wants nothing special; one that sends a tool list would get a
different answer from a server that ignores it. Fields that no API defines are refused by the schema itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagoda.errors import RequestError

# field → the values besides null that ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "detailed_thinking": (False,),
    "documents": ([],),
    "early_stopping": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # without tools there are no calls to parallelise
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "structural_tag": (),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": (),
    "vllm_xargs": ({},),
    "web_search_options": (),
}

# field of a chat message → likewise; clients send an answer's empty fields back
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_call_id": (),
    "tool_calls": ([],),
}


def without_neutral(data: object, table: Mapping[str, tuple[Any, ...]] = NEUTRAL, *, where: str = "") -> object:
    """`data` less the fields of `table` that ask for nothing.

    Raises RequestError naming a field of `table` that asks for something. What is not an object is left to the schema.
    """
    if not isinstance(data, dict) or table.keys().isdisjoint(data):
        return data
    for name in table.keys() & data.keys():
        if data[name] is not None and data[name] not in table[name]:
            raise RequestError(
                f"{where}{name} is not supported: leave it out", param=f"{where}{name}", code="unsupported_parameter"
            )
    return {name: value for name, value in data.items() if name not in table}
