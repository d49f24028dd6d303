"""A tokenizer from a Hugging Face style folder: `tokenizer.json` and the small files around it.

The pipeline of `tokenizer.json` runs as it stands; here it is only asked what its tokens mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Pipeline

from pagoda.errors import FormatError, UnsupportedError
from pagoda.text.vocabulary import Spelling, TokenType, Vocabulary, end_ids, is_byte_token


class PipelineEncoder:
    """Two views of one pipeline: one finds the names of control tokens in text, one takes them for text."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._with_control = pipeline
        self._plain = _twin(pipeline)
        self._plain.encode_special_tokens = True

    def __call__(self, text: str, parse_special: bool) -> list[int]:
        pipeline = self._with_control if parse_special else self._plain
        # A batch is encoded without the interpreter's lock, so that a long text keeps no other thread waiting.
        return pipeline.encode_batch_fast([text], add_special_tokens=False)[0].ids


def read_folder(folder: Path, config: Mapping[str, Any]) -> tuple[Vocabulary, PipelineEncoder]:
    """`config` is config.json. Raises UnsupportedError without a tokenizer.json, FormatError for a bad one."""
    pipeline = open_pipeline(folder / "tokenizer.json")
    settings = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
    generation = read_json(folder / "generation_config.json")
    tokens, types = _tokens(pipeline)
    named = _named_ids(pipeline, settings, config)
    declared = [*_listed(generation.get("eos_token_id")), *_listed(config.get("eos_token_id")), named["eos"]]
    prefix, suffix = _frame(pipeline, settings, named)
    spelling, strip = _spelling(pipeline)
    vocabulary = Vocabulary(
        tokens,
        types,
        spelling,
        bos_id=named["bos"],
        eos_id=named["eos"],
        eos_ids=end_ids(tokens, types, declared),
        prefix=prefix,
        suffix=suffix,
        strip_leading_space=strip,
    )
    return vocabulary, PipelineEncoder(pipeline)


def open_pipeline(path: Path) -> Pipeline:
    """A tokenizer.json as it stands. UnsupportedError if there is none, FormatError if it cannot be read."""
    if not path.is_file():
        raise UnsupportedError(
            f"{path} does not exist; a model folder needs a tokenizer.json (`save_pretrained` of a fast tokenizer)"
        )
    try:
        pipeline = Pipeline.from_file(str(path))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise FormatError(f"not a tokenizer that can be read: {error}", path=str(path)) from error
    pipeline.no_truncation()
    pipeline.no_padding()
    return pipeline


def _twin(pipeline: Pipeline) -> Pipeline:
    """A second pipeline over the same model, which is shared, not copied."""
    twin = Pipeline(pipeline.model)
    if pipeline.normalizer is not None:
        twin.normalizer = pipeline.normalizer
    if pipeline.pre_tokenizer is not None:
        twin.pre_tokenizer = pipeline.pre_tokenizer
    added = pipeline.get_added_tokens_decoder()
    twin.add_tokens([added[i] for i in sorted(added)])
    return twin


def _tokens(pipeline: Pipeline) -> tuple[list[str], list[int]]:
    """Texts and types of all ids; an id that the file leaves out is unused."""
    vocabulary = pipeline.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    tokens, types = [""] * size, [int(TokenType.UNUSED)] * size
    byte_fallback = bool(getattr(pipeline.model, "byte_fallback", False))
    for text, i in vocabulary.items():
        is_byte = byte_fallback and is_byte_token(text)
        tokens[i], types[i] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
    for i, token in pipeline.get_added_tokens_decoder().items():
        tokens[i], types[i] = token.content, TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return tokens, types


def _spelling(pipeline: Pipeline) -> tuple[Spelling, bool]:
    """How tokens are spelled, and whether decoding takes a leading space away; the decoder's steps tell."""
    steps = list(_steps(pipeline.decoder))
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return "bytes", False
    if "WordPiece" in kinds:
        return "wordpiece", True
    strips = any(step["type"] == "Strip" and step.get("start", 0) > 0 for step in steps)
    metaspace = any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)
    return "sentencepiece", strips or metaspace


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    """The decoder's steps, flattened. Its state is JSON; there is no other way to ask."""
    if decoder is None:
        return
    pending = [json.loads(decoder.__getstate__())]
    while pending:
        step = pending.pop()
        yield step
        pending += step.get("decoders", [])


def _named_ids(pipeline: Pipeline, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int | None]:
    """Ids of BOS and EOS: by their text in the tokenizer's settings, else by number in the model's."""
    found: dict[str, int | None] = {}
    for name in ("bos", "eos"):
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        by_number = [] if f"{name}_token" in settings else _listed(config.get(f"{name}_token_id"))
        found[name] = pipeline.token_to_id(text) if isinstance(text, str) else next(iter(by_number), None)
    return found


def _frame(
    pipeline: Pipeline, settings: Mapping[str, Any], named: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after a text: as the settings say, else as the pipeline's post-processor does it."""
    bare = pipeline.encode("a", add_special_tokens=False).ids
    framed = pipeline.encode("a", add_special_tokens=True).ids
    starts = [i for i in range(len(framed) - len(bare) + 1) if framed[i : i + len(bare)] == bare]
    at = starts[0] if starts else 0
    frame = {"bos": tuple(framed[:at]), "eos": tuple(framed[at + len(bare) :])}
    for name in frame:
        wanted, token_id = settings.get(f"add_{name}_token"), named[name]
        if isinstance(wanted, bool):
            frame[name] = (token_id,) if wanted and token_id is not None else ()
    return frame["bos"], frame["eos"]


def _listed(value: Any) -> Sequence[int]:
    """An id, a list of ids or nothing, as a list."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int)]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"not JSON: {error}", path=str(path)) from error
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", path=str(path))
    return value
