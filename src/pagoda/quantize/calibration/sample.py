"""Calibration: which text a quantizer looks at a model's activations with, cut into windows of tokens.

`self` (or `builtin`) is text that the model writes: see `pagoda.scoring.self_text`.

A file is text, or JSONL with an object a line: {"text": …}, {"messages": [{"role", "content"}]} or
{"conversations": [{"from", "value"}]}; dialogs go through the model's chat template. `hf:owner/dataset` or
`hf:owner/dataset:file` takes such a file from the hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.errors import ConfigError, PagodaError, SourceError
from pagoda.formats.checkpoint import Checkpoint
from pagoda.models.registry import fallback_template
from pagoda.quantize.job import Progress
from pagoda.quantize.settings import QuantizeSettings
from pagoda.scoring.self_text import CALIBRATION_SEED, NAMES, Document, self_documents
from pagoda.text.chat import ChatTemplate
from pagoda.text.load import chat_template_or_reason
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.types import Int32Array

ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant"}  # of `conversations`


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What goes into the metadata of what was made with a sample."""

    source: str
    sha256: str  # of the token ids as little-endian int32
    windows: int
    tokens: int  # of each window


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Windows of tokens, [N, T]."""

    windows: Int32Array
    source: str

    def facts(self) -> SampleFacts:
        digest = hashlib.sha256(np.ascontiguousarray(self.windows, dtype="<i4").tobytes()).hexdigest()
        return SampleFacts(self.source, digest, *self.windows.shape)

    def as_json(self) -> dict[str, Any]:
        return asdict(self.facts())


Message = dict[str, Any]


def model_sample(checkpoint: Checkpoint, settings: QuantizeSettings, max_context: int, progress: Progress) -> Sample:
    """The sample that `settings` ask for. Raises what `read_sample` and `self_documents` raise."""
    tokenizer = load_tokenizer(checkpoint)
    template, _ = chat_template_or_reason(checkpoint, tokenizer, fallback_template(checkpoint))
    source, count = settings.calibration, settings.calibration_samples
    tokens = min(settings.calibration_tokens, max_context)
    documents: Iterable[Document]
    if source in NAMES:
        documents = self_documents(
            checkpoint.path, count * tokens, CALIBRATION_SEED, threads=settings.threads, progress=progress
        )
    else:
        documents = read_documents(source)
    return read_sample(source, documents, tokenizer, template, num_windows=count, window_tokens=tokens)


def read_sample(
    source: str,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    num_windows: int,
    window_tokens: int,
) -> Sample:
    """Up to `num_windows` windows of `window_tokens` each, evenly spread over the text.

    Every document starts as the model's prompts do, and so does every window: BOS, where the model has one, takes the
    place of the first token. Raises ConfigError for a file that cannot be read, is empty or too short for one window,
    SourceError for a data set that cannot be reached.
    """
    ids = np.fromiter(_token_ids(documents, tokenizer, template), dtype=np.int32)
    count = len(ids) // window_tokens
    if not count:
        raise ConfigError(
            f"calibration text {source} has {len(ids)} tokens, which is less than one window of {window_tokens}; "
            "give a longer text, or set --calibration-tokens"
        )
    windows = ids[: count * window_tokens].reshape(count, window_tokens)
    chosen = np.arange(min(num_windows, count)) * count // min(num_windows, count)
    windows = windows[chosen].copy()
    if tokenizer.vocabulary.prefix:
        windows[:, : len(tokenizer.vocabulary.prefix)] = tokenizer.vocabulary.prefix
    return Sample(windows, source)


def _token_ids(documents: Iterable[Document], tokenizer: Tokenizer, template: ChatTemplate | None) -> Iterator[int]:
    for document in documents:
        if isinstance(document, str):
            yield from tokenizer.encode(document)
        elif template is None:
            yield from tokenizer.encode("\n\n".join(str(message["content"]) for message in document))
        else:
            yield from template.render_ids(_accepted(document, template), add_generation_prompt=False)


def _accepted(messages: list[Message], template: ChatTemplate) -> list[Message]:
    """The messages; without those of a system role that the template refuses."""
    try:
        template.render(messages, add_generation_prompt=False)
    except PagodaError:
        return [message for message in messages if message["role"] != "system"]
    return messages


def read_documents(source: str) -> Iterator[Document]:
    """Texts and dialogs of a file or a data set."""
    path = _from_hub(source) if source.startswith("hf:") else Path(source).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"calibration file {path} is not UTF-8 text: byte {error.start} is none") from None
    except OSError as error:
        hint = "" if path.suffix else "; it is self, a file, or hf:owner/dataset"
        raise ConfigError(f"calibration file {path} cannot be read: {error.strerror}{hint}") from None
    if not text.strip():
        raise ConfigError(f"calibration file {path} is empty")
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        yield text
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _document(line, f"{path}:{number}")


def _document(line: str, where: str) -> Document:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"calibration {where}: not JSON: {error}") from None
    if isinstance(entry, str):
        return entry
    if isinstance(entry, dict):
        for key in ("text", "content"):
            if isinstance(entry.get(key), str):
                return str(entry[key])
        messages = entry.get("messages", entry.get("conversations"))
        if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
            return [_message(message, where) for message in messages]
    raise ConfigError(f'calibration {where}: needs {{"text": …}} or {{"messages": […]}}')


def _message(entry: Mapping[str, Any], where: str) -> Message:
    role = entry.get("role", entry.get("from"))
    content = entry.get("content", entry.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ConfigError(f"calibration {where}: a message needs a role and content, both text")
    return {"role": ROLES.get(role, role), "content": content}


def _from_hub(source: str) -> Path:
    """Download the file of a data set; without a name the first .jsonl or .txt there is."""
    from huggingface_hub import HfApi, hf_hub_download

    repo, _, name = source.removeprefix("hf:").partition(":")
    try:
        if not name:
            files = sorted(HfApi().list_repo_files(repo, repo_type="dataset"))
            name = next((file for file in files if file.endswith((".jsonl", ".txt"))), "")
        if name:
            return Path(hf_hub_download(repo, name, repo_type="dataset"))
    except Exception as error:  # whatever the hub's client raises, from bad names to no network
        raise SourceError(f"data set {source} cannot be had: {str(error).splitlines()[0]}") from error
    raise SourceError(f"data set {repo} holds no .jsonl or .txt file; name a file as hf:{repo}:FILE")
