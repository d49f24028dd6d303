"""The tokenizer of a checkpoint as the files of a Hugging Face folder.

A folder's own files are copied as they are. A GGUF file's tokenizer becomes tokenizer.json, tokenizer_config.json and
chat_template.jinja; SentencePiece vocabularies become BPE whose merges are ranked by the scores of what they make.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from pagoda.errors import UnsupportedError
from pagoda.text.bpe import merge_pairs, pre_tokenizer
from pagoda.text.chat_sources import MORE_TEMPLATES, named_templates
from pagoda.text.from_gguf import NORMALIZER_KEY, is_encodable, read_gguf, text_ids
from pagoda.text.tokenizer import TokenizerSource
from pagoda.text.vocabulary import SPACE, TokenType, Vocabulary

FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)
_KEY = "tokenizer.ggml."
_MARKED = frozenset({TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED})


def write_tokenizer(checkpoint: TokenizerSource, folder: Path) -> None:
    """Put the tokenizer's files into `folder`. Raises what `load_tokenizer` raises."""
    if checkpoint.kind != "gguf":
        for name in FILES:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, folder / name)
        if (checkpoint.path / MORE_TEMPLATES).is_dir():
            shutil.copytree(checkpoint.path / MORE_TEMPLATES, folder / MORE_TEMPLATES, dirs_exist_ok=True)
        return
    vocabulary, _ = read_gguf(checkpoint.metadata)
    pipeline_of(vocabulary, checkpoint.metadata).save(str(folder / "tokenizer.json"))
    templates = named_templates(checkpoint.metadata)
    _write_json(folder / "tokenizer_config.json", _settings(vocabulary, checkpoint.metadata, templates))
    if "default" in templates:
        (folder / "chat_template.jinja").write_text(templates["default"], encoding="utf-8")
    ends = sorted(vocabulary.eos_ids)
    generation = {"bos_token_id": vocabulary.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends}
    _write_json(folder / "generation_config.json", {k: v for k, v in generation.items() if v not in (None, [])})


def pipeline_of(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> Tokenizer:
    """A `tokenizers` pipeline that encodes as the GGUF metadata say."""
    make = _sentencepiece if vocabulary.spelling == "sentencepiece" else _byte_level
    pipeline = make(vocabulary, metadata)
    pipeline.add_special_tokens(_added(vocabulary, {TokenType.CONTROL, TokenType.UNKNOWN}, special=True))
    pipeline.add_tokens(_added(vocabulary, {TokenType.USER_DEFINED}, special=False))
    frame = _frame(vocabulary)
    if frame is not None:
        steps = [pipeline.post_processor, frame] if pipeline.post_processor else [frame]
        pipeline.post_processor = processors.Sequence(steps)
    return pipeline


def _byte_level(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> Tokenizer:
    pre = pre_tokenizer(metadata.get(_KEY + "pre", "default"))
    text = text_ids(vocabulary)
    merges = [pair for pair in merge_pairs(metadata[_KEY + "merges"]) if pair[0] in text and pair[1] in text]
    for left, right in merges:
        if left + right not in text:
            raise UnsupportedError(
                f"tokenizer.ggml.merges make {left + right!r}, which is no text: a tokenizer.json cannot say so"
            )
    pipeline = Tokenizer(BPE(vocab=_ids(vocabulary), merges=merges, ignore_merges=pre.ignore_merges))
    if metadata.get(NORMALIZER_KEY):
        pipeline.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def _sentencepiece(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> Tokenizer:
    if metadata.get(_KEY + "scores") is None:
        raise UnsupportedError("a SentencePiece vocabulary without scores cannot be written to a tokenizer.json")
    unknown = vocabulary.tokens[metadata.get(_KEY + "unknown_token_id", 0)]
    merges = scored_merges(text_ids(vocabulary), metadata[_KEY + "scores"])
    pipeline = Tokenizer(
        BPE(vocab=_ids(vocabulary), merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    after: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.strip_leading_space:
        steps.insert(0, normalizers.Prepend(SPACE))
        after.append(decoders.Strip(" ", 1, 0))
    pipeline.normalizer = normalizers.Sequence(steps)
    pipeline.decoder = decoders.Sequence(after)
    return pipeline


def scored_merges(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, that of the highest score first."""
    pairs = [
        (-scores[i], ids[text[:at]], ids[text[at:]], text[:at], text[at:])
        for text, i in ids.items()
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    ids: dict[str, int] = {}
    for i, text in enumerate(vocabulary.tokens):
        if ids.setdefault(text, i) != i:
            raise UnsupportedError(f"tokens {ids[text]} and {i} are both {text!r}: a tokenizer.json cannot say so")
        if not is_encodable(text):
            raise UnsupportedError(f"token {i} is not UTF-8: a tokenizer.json cannot say so")
    return ids


def _added(vocabulary: Vocabulary, kinds: set[TokenType], *, special: bool) -> list[AddedToken]:
    ids = [i for i, kind in enumerate(vocabulary.types[: len(vocabulary.tokens)]) if kind in kinds]
    flags = [{"special": special, "normalized": False, "rstrip": i in vocabulary.rstrip_ids} for i in ids]
    return [AddedToken(vocabulary.tokens[i], **flag) for i, flag in zip(ids, flags, strict=True)]


def _frame(vocabulary: Vocabulary) -> Any:
    """What puts BOS before and EOS after a text; None where nothing is put."""
    if not vocabulary.prefix and not vocabulary.suffix:
        return None
    before, after = ([vocabulary.tokens[i] for i in ids] for ids in (vocabulary.prefix, vocabulary.suffix))
    special = [(vocabulary.tokens[i], i) for i in (*vocabulary.prefix, *vocabulary.suffix)]
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=special,
    )


def _settings(vocabulary: Vocabulary, metadata: Mapping[str, Any], templates: Mapping[str, str]) -> dict[str, Any]:
    """The content of tokenizer_config.json. Text gets no role there: a role would make a control token of it."""
    tokens, types = vocabulary.tokens, vocabulary.types
    roles = {
        "bos_token": vocabulary.bos_id,
        "eos_token": vocabulary.eos_id,
        "pad_token": metadata.get(_KEY + "padding_token_id"),
        "unk_token": metadata.get(_KEY + "unknown_token_id"),
        "sep_token": metadata.get(_KEY + "seperator_token_id"),
        "mask_token": metadata.get(_KEY + "mask_token_id"),
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(vocabulary.prefix),
        "add_eos_token": bool(vocabulary.suffix),
        **{name: tokens[i] for name, i in roles.items() if i is not None and i < len(tokens) and types[i] in _MARKED},
    }
    others = [{"name": name, "template": template} for name, template in templates.items() if name != "default"]
    if others:
        settings["chat_template"] = [{"name": "default", "template": templates.get("default", "")}, *others]
    return settings


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
