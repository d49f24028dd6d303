"""What of a tokenizer.json GGUF metadata cannot say, each named: a file that dropped it would tokenize otherwise.

GGUF says which tokens merge, a pre-tokenizer by its name, whether a space is put first, and a type for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer as Pipeline

from pagoda.errors import UnsupportedError
from pagoda.text.from_gguf import rstrip_ids
from pagoda.text.vocabulary import SPACE, Vocabulary

State = Mapping[str, Any]  # a step of a pipeline as tokenizer.json writes it

TO_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}  # what a normalizer makes of spaces
PREPEND = {"type": "Prepend", "prepend": SPACE}
FROM_SPACES = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}  # what a decoder makes of them
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def check(state: State, pipeline: Pipeline, vocabulary: Vocabulary, name: str) -> None:
    """`state` is the pipeline as JSON, `name` the model's. Raises UnsupportedError, which names all of it."""
    kind = state["model"].get("type")
    if kind != "BPE":
        raise UnsupportedError(f"a {kind} tokenizer cannot be written to GGUF; BPE can")
    special = _sentencepiece if is_sentencepiece(state) else _byte_level
    added = [*_added(state, pipeline), *_rstrip(state, vocabulary, name)]
    reasons = [*_model(state["model"]), *special(state), *added, *_frame(vocabulary)]
    if reasons:
        raise UnsupportedError(
            f"this tokenizer.json cannot be written to GGUF, which has no word for {'; '.join(reasons)}"
        )


def is_sentencepiece(state: State) -> bool:
    """Whether tokens spell spaces as ▁. Else each byte is a character."""
    steps = [*_flat(state["pre_tokenizer"]), *_flat(state["decoder"])]
    return not any(step["type"] == "ByteLevel" for step in steps)


def puts_space_first(state: State) -> bool:
    """Whether a SentencePiece pipeline that can be written puts a space before a text."""
    return PREPEND in _flat(state["normalizer"])


def normalizes(state: State) -> bool:
    """Whether a byte-level pipeline that can be written normalizes texts to NFC."""
    return bool(_flat(state["normalizer"]))


def _flat(step: State | None) -> list[State]:
    """The steps of a normalizer, pre-tokenizer or decoder, those of sequences among them."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = next(value for key, value in step.items() if key != "type")
    return [state for one in inner for state in _flat(one)]


def _model(model: State) -> Iterator[str]:
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            yield f"{key} {model[key]!r}"


def _byte_level(state: State) -> Iterator[str]:
    normalizers = _flat(state["normalizer"])
    if [step["type"] for step in normalizers] not in ([], ["NFC"]):
        yield f"a normalizer {_names(normalizers)}"
    decoders = _flat(state["decoder"])
    if [step["type"] for step in decoders] != ["ByteLevel"]:
        yield f"a decoder {_names(decoders)} of byte-level tokens"


def _sentencepiece(state: State) -> Iterator[str]:
    normalizers, steps = _flat(state["normalizer"]), _flat(state["pre_tokenizer"])
    marks = [step for step in steps if step["type"] == "Metaspace"]
    first = PREPEND in normalizers
    if normalizers not in ([PREPEND, TO_SPACES], [TO_SPACES]) and not (marks and not normalizers):
        yield f"a normalizer {_names(normalizers)}"
    for step in steps:
        if step["type"] == "Metaspace" and not normalizers:
            yield from _metaspace(step, state["model"])
        elif step["type"] != "Split" or step["pattern"] != {"String": " "}:  # there are no spaces left to split at
            yield f"a pre-tokenizer {step['type']}"
    if not state["model"].get("byte_fallback"):
        yield "byte_fallback false"
    if state["model"].get("ignore_merges"):
        yield "ignore_merges of a SentencePiece vocabulary"
    decoders = [_as_replace(step) for step in _flat(state["decoder"])]
    wanted: list[State] = [FROM_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}, *([STRIP] if first else [])]
    if decoders != wanted:
        yield f"a decoder {_names(decoders)}"


def _metaspace(step: State, model: State) -> Iterator[str]:
    if step["replacement"] != SPACE:
        yield f"the mark {step['replacement']!r} for spaces"
    if step["prepend_scheme"] != "never":
        yield f"a space put first by Metaspace with prepend_scheme {step['prepend_scheme']!r}"
    if step["split"] and any(SPACE in token[1:] for token in model["vocab"]):
        yield "splitting at spaces beside tokens that hold several"


def _as_replace(step: State) -> State:
    """A decoder's Metaspace as the step that does the same."""
    same = step["type"] == "Metaspace" and step["replacement"] == SPACE and step["prepend_scheme"] == "never"
    return FROM_SPACES if same else step


def _added(state: State, pipeline: Pipeline) -> Iterator[str]:
    """Added tokens that take spaces with them, match whole words only, or are found in normalized text only."""
    tokens = state["added_tokens"]
    for flag in ("lstrip", "single_word"):
        if flagged := [token["content"] for token in tokens if token[flag]]:
            yield f"{flag} of {_listed(flagged)}"
    if pipeline.normalizer is not None:
        texts = [token["content"] for token in tokens if token["normalized"]]
        if changed := [text for text in texts if pipeline.normalizer.normalize_str(text) != text]:
            yield f"normalized of {_listed(changed)}"


def _rstrip(state: State, vocabulary: Vocabulary, name: str) -> Iterator[str]:
    """Added tokens that take white space with them, unless readers know it by the model's name."""
    flagged = {token["content"] for token in state["added_tokens"] if token["rstrip"]}
    known = {vocabulary.tokens[i] for i in rstrip_ids(name, vocabulary.tokens, vocabulary.types)}
    if flagged - known:
        yield f"rstrip of {_listed(sorted(flagged - known))}"
    if known - flagged:
        yield f"no rstrip of {_listed(sorted(known - flagged))} in a model called {name!r}"


def _frame(vocabulary: Vocabulary) -> Iterator[str]:
    """What a text is framed with, other than BOS and EOS."""
    if vocabulary.prefix not in ((), (vocabulary.bos_id,)):
        yield f"the tokens {_listed([vocabulary.tokens[i] for i in vocabulary.prefix])} before a text"
    if vocabulary.suffix not in ((), (vocabulary.eos_id,)):
        yield f"the tokens {_listed([vocabulary.tokens[i] for i in vocabulary.suffix])} behind a text"


def _names(steps: list[State]) -> str:
    return " + ".join(step["type"] for step in steps) or "null"


def _listed(texts: list[str]) -> str:
    return ", ".join(map(repr, texts[:5])) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
