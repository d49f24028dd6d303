"""Where a model keeps its chat template: GGUF metadata, files of its folder, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pagoda.errors import FormatError
from pagoda.text.builtin_templates import builtin_template
from pagoda.text.json_file import read_json
from pagoda.text.tokenizer import TokenizerSource
from pagoda.text.vocabulary import TokenType, Vocabulary

MORE_TEMPLATES = "additional_chat_templates"  # a folder where transformers 5 keeps the named ones
_GGUF_KEY = "tokenizer.chat_template"


class TemplateSource(TokenizerSource, Protocol):
    """The parts of a checkpoint that tell where its chat template is."""

    @property
    def architecture(self) -> str: ...


def template_sources(checkpoint: TemplateSource, vocabulary: Vocabulary, fallback: str | None) -> dict[str, str]:
    """Templates by name, "default" among them: the checkpoint's own, else one that fits its tokens, else `fallback`.

    Raises UnsupportedError where there is none.
    """
    found = named_templates(checkpoint.metadata) if checkpoint.kind == "gguf" else folder_templates(checkpoint.path)
    return found if "default" in found else {**found, "default": _builtin(checkpoint, vocabulary, fallback)}


def named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """`tokenizer.chat_template` is the default, `tokenizer.chat_template.tool_use` and the like are named."""
    names = {key: key.removeprefix(_GGUF_KEY) for key in metadata if key.startswith(_GGUF_KEY)}
    named = {name.removeprefix(".") or "default": metadata[key] for key, name in names.items() if name[:1] in ("", ".")}
    return {name: source for name, source in named.items() if isinstance(source, str)}


def folder_templates(folder: Path) -> dict[str, str]:
    """A chat_template.jinja beside the model comes before what tokenizer_config.json holds."""
    listed = read_json(folder / "tokenizer_config.json").get("chat_template")
    found = _named(listed, folder / "tokenizer_config.json")
    found |= _named(read_json(folder / "chat_template.json").get("chat_template"), folder / "chat_template.json")
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        found["default"] = jinja.read_text(encoding="utf-8")
    return found


def _named(value: Any, path: Path) -> dict[str, str]:
    """A template, or a list of {"name": …, "template": …}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError) as error:
        raise FormatError("chat_template is neither text nor a list of named templates", path=str(path)) from error


def _builtin(checkpoint: TemplateSource, vocabulary: Vocabulary, fallback: str | None) -> str:
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=False)
    control = {text for text, kind in pairs if kind == TokenType.CONTROL}
    return builtin_template(checkpoint.architecture, control, fallback)
