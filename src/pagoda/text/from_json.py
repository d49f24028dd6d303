"""A tokenizer from a Hugging Face style folder: `tokenizer.json` and the small files around it.

The pipeline of `tokenizer.json` runs as it stands; here it is only asked what its tokens mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Pipeline

from pagoda.errors import FormatError, UnsupportedError
from pagoda.text.added_tokens import add_tokens, as_special, control_text, read_settings
from pagoda.text.decoders import DecoderChain
from pagoda.text.end_tokens import end_ids
from pagoda.text.json_file import read_json
from pagoda.text.vocabulary import TokenType, Vocabulary, is_byte_token


class PipelineEncoder:
    """Two views of one pipeline: one finds the names of control tokens in text, one takes them for text."""

    def __init__(self, pipeline: Pipeline, control: set[str]) -> None:
        """`control` are the texts of the control tokens."""
        self._with_control = pipeline
        self._plain = _twin(pipeline, control)
        self._plain.encode_special_tokens = True

    def __call__(self, text: str, parse_special: bool) -> list[int]:
        pipeline = self._with_control if parse_special else self._plain
        # A batch is encoded without the interpreter's lock, so that a long text keeps no other thread waiting.
        return pipeline.encode_batch_fast([text], add_special_tokens=False)[0].ids


def read_folder(folder: Path, config: Mapping[str, Any]) -> tuple[Vocabulary, PipelineEncoder]:
    """`config` is config.json. Raises UnsupportedError without a tokenizer.json, FormatError for a bad one."""
    pipeline, control, settings = read_pipeline(folder, config)
    generation = read_json(folder / "generation_config.json")
    chain = DecoderChain(pipeline.decoder)
    tokens, types = _tokens(pipeline, chain, control)
    named = _named_ids(pipeline, settings, config)
    declared = [*_listed(generation.get("eos_token_id")), *_listed(config.get("eos_token_id")), named["eos"]]
    prefix, suffix = _frame(pipeline, settings, named)
    vocabulary = Vocabulary(
        tokens,
        types,
        chain,
        bos_id=named["bos"],
        eos_id=named["eos"],
        eos_ids=end_ids(tokens, types, declared),
        prefix=prefix,
        suffix=suffix,
    )
    return vocabulary, PipelineEncoder(pipeline, control)


def read_pipeline(folder: Path, config: Mapping[str, Any]) -> tuple[Pipeline, set[str], dict[str, Any]]:
    """→ (tokenizer.json with the tokens of the files beside it, the texts of its control tokens, its settings)"""
    pipeline = open_pipeline(folder / "tokenizer.json")
    settings = read_settings(folder)
    return pipeline, add_tokens(pipeline, folder, settings, _num_rows(config)), settings


def open_pipeline(path: Path) -> Pipeline:
    """A tokenizer.json as it stands. UnsupportedError if there is none, FormatError if it cannot be read."""
    if not path.is_file():
        raise UnsupportedError(
            f"{path} does not exist; a model folder needs a tokenizer.json (`save_pretrained` of a fast tokenizer)"
        )
    try:
        pipeline = Pipeline.from_file(str(path))
    except Exception as error:  # `tokenizers` raises bare Exception
        pipeline = _from_plain_json(path, error)
    pipeline.no_truncation()
    pipeline.no_padding()
    return pipeline


def _from_plain_json(path: Path, refusal: Exception) -> Pipeline:
    """The pipeline of a file that `tokenizers` refuses for keys that stand twice or for a byte order mark."""
    try:
        return Pipeline.from_str(json.dumps(read_json(path)))
    except FormatError:
        raise
    except Exception:
        raise FormatError(f"not a tokenizer that can be read: {refusal}", path=str(path)) from refusal


def _twin(pipeline: Pipeline, control: set[str]) -> Pipeline:
    """A second pipeline over the same model, which is shared, not copied."""
    twin = Pipeline(pipeline.model)
    if pipeline.normalizer is not None:
        twin.normalizer = pipeline.normalizer
    if pipeline.pre_tokenizer is not None:
        twin.pre_tokenizer = pipeline.pre_tokenizer
    added = pipeline.get_added_tokens_decoder()
    tokens = [added[i] for i in sorted(added)]
    twin.add_tokens([as_special(token) if token.content in control else token for token in tokens])
    return twin


def _num_rows(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model embeds, if config.json says it."""
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size", config.get("vocab_size"))
    return rows if isinstance(rows, int) else None


def _tokens(pipeline: Pipeline, chain: DecoderChain, control: set[str]) -> tuple[list[str], list[int]]:
    """Texts and types of all ids; an id that the file leaves out is unused."""
    vocabulary = pipeline.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    tokens, types = [""] * size, [int(TokenType.UNUSED)] * size
    for text, i in vocabulary.items():
        is_byte = chain.has_byte_tokens and is_byte_token(text)
        tokens[i], types[i] = text, int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for i, token in pipeline.get_added_tokens_decoder().items():
        is_control = token.content in control
        tokens[i], types[i] = token.content, int(TokenType.CONTROL if is_control else TokenType.USER_DEFINED)
    return tokens, types


def _named_ids(pipeline: Pipeline, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int | None]:
    """Ids of BOS and EOS: by their text in the tokenizer's settings, else by number in the model's.

    Settings that say null mean that there is none.
    """
    found: dict[str, int | None] = {}
    for name in ("bos", "eos"):
        value = settings.get(f"{name}_token")
        text = control_text(value)
        by_number = [] if value is None and f"{name}_token" in settings else _listed(config.get(f"{name}_token_id"))
        found[name] = None if text is None else pipeline.token_to_id(text)
        if found[name] is None:
            found[name] = next(iter(by_number), None)
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
