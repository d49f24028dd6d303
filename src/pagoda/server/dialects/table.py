"""The dialects: kind of body → what makes a request of ours of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagoda.server.dialects import llama, messages, ollama, responses
from pagoda.server.dialects.translated import Translated

TRANSLATIONS: dict[str, Callable[[Any], Translated]] = {
    "responses": responses.translate,
    "messages": messages.translate,
    "llama_completion": llama.translate_completion,
    "infill": llama.translate_infill,
    "ollama_chat": ollama.translate_chat,
    "ollama_generate": ollama.translate_generate,
    "count_tokens": messages.translate_count,
}
