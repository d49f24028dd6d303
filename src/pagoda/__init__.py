"""Pagoda takes a language model from a file to a production service on the hardware you have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pagoda.engine.llm import LLM
    from pagoda.grammar.source import GrammarSource
    from pagoda.types import SamplingParams

__all__ = ["LLM", "GrammarSource", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:  # imported on first use, so that `import pagoda` stays instant
    if name == "LLM":
        from pagoda.engine.llm import LLM

        return LLM
    if name == "GrammarSource":
        from pagoda.grammar.source import GrammarSource

        return GrammarSource
    if name == "SamplingParams":
        from pagoda.types import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'pagoda' has no attribute {name!r}")
