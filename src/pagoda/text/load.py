"""The tokenizer and the chat template of a model's files, without its weights."""

from __future__ import annotations

from pathlib import Path

from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.text.chat import ChatTemplate, load_chat_template
from pagoda.text.chat_sources import TemplateSource
from pagoda.text.tokenizer import Tokenizer, load_tokenizer


def load_text(path: Path, fallback: str | None = None) -> tuple[Tokenizer, ChatTemplate | None, str | None]:
    """→ (the tokenizer, the chat template, why there is none). Raises what `open_checkpoint` and the loaders raise.

    fallback: the template of the model's family, for models that bring none.
    """
    checkpoint = open_checkpoint(path)
    try:
        tokenizer = load_tokenizer(checkpoint)
        return tokenizer, *chat_template_or_reason(checkpoint, tokenizer, fallback)
    finally:
        checkpoint.close()


def chat_template_or_reason(
    checkpoint: TemplateSource, tokenizer: Tokenizer, fallback: str | None
) -> tuple[ChatTemplate | None, str | None]:
    """→ (the chat template, why there is none)"""
    try:
        return load_chat_template(checkpoint, tokenizer, fallback), None
    except UnsupportedError as error:
        return None, str(error)
