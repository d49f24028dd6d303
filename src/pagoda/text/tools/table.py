"""The formats, most particular first, and which of them a chat template teaches."""

from __future__ import annotations

from pagoda.text.tools.base import ToolFormat
from pagoda.text.tools.gemma import Gemma
from pagoda.text.tools.generic import Generic
from pagoda.text.tools.harmony import Harmony
from pagoda.text.tools.hermes import Hermes
from pagoda.text.tools.json_list import COHERE, GRANITE, NEMOTRON, PHI
from pagoda.text.tools.llama3 import Llama3
from pagoda.text.tools.mistral import Mistral
from pagoda.text.tools.pythonic import Pythonic
from pagoda.text.tools.qwen3_coder import Qwen3Coder

GENERIC = Generic()
FORMATS: dict[str, ToolFormat] = {
    row.name: row
    for row in (
        Gemma(),
        Qwen3Coder("seed_oss", "<seed:tool_call>", "</seed:tool_call>", apart=""),
        Harmony(),
        Qwen3Coder(),
        Hermes(),
        Mistral("mistral_v11", named=True),
        Mistral("mistral", named=False),
        PHI,
        GRANITE,
        NEMOTRON,
        COHERE,
        Pythonic("lfm2", ("<|tool_call_start|>",), "<|tool_call_start|>", "<|tool_call_end|>"),
        Pythonic("pythonic", ("[func_name1(", "func_name1(params_name1")),
        Llama3(),
        GENERIC,
    )
}


def format_of(template: str) -> ToolFormat:
    """The format that a chat template teaches; GENERIC where it teaches none that is known."""
    return next(row for row in FORMATS.values() if row.is_of(template))
