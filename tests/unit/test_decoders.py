"""Every decoder that a tokenizer.json can state, over every kind of model, against `tokenizers`' own decoding.

The class of inputs: a pipeline's decoder is any of the nine kinds of the library, or a sequence of them in any order,
or absent; its model is BPE, Unigram, WordPiece or WordLevel; its vocabulary holds bytes like <0xC3>, marks, prefixes,
suffixes, punctuation, control tokens and added tokens; ids come in any order, with ids that stand for nothing. The
right text is what `Tokenizer.decode` of `tokenizers` makes of the ids.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers import Tokenizer as Pipeline

from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import VocabularyFile

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [
    *["▁", "▁▁", "▁the", "the", "▁a▁b", "a", "b", "日", "é", "Ġ", "Ġthe", "Ã", "©", "Ċ", "Ã©", "<0xZZ>", "<0x+A>"],
    *["##ed", "##", "ed##", "un</w>", "</w>", "do</w>x</w>", " n't", " .", ".", " do not", "|", "[PAD]", "h", "l"],
    *["  spaced  ", "\n", "🦙", "<0x0a>", "<0xC3", "ab", "ba"],
]
SPECIAL = ["<unk>", "<s>", "</s>"]
ADDED = ["<tool>", "<é ▁>", "▁added"]

llama = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
DECODERS: dict[str, Any] = {
    "none": None,
    "ByteLevel": decoders.ByteLevel(),
    "ByteFallback": decoders.ByteFallback(),
    "Metaspace always": decoders.Metaspace(prepend_scheme="always"),
    "Metaspace first": decoders.Metaspace(prepend_scheme="first"),
    "Metaspace never": decoders.Metaspace(prepend_scheme="never"),
    "Metaspace of another mark": decoders.Metaspace(replacement="|"),
    "Replace": decoders.Replace("a", "xyz"),
    "Replace by expression": decoders.Replace(Regex(r"[ab▁]+"), "-"),
    "Strip": decoders.Strip("▁", 1, 0),
    "Fuse": decoders.Fuse(),
    "WordPiece": decoders.WordPiece(),
    "WordPiece without cleanup": decoders.WordPiece(prefix="##", cleanup=False),
    "CTC": decoders.CTC("[PAD]", "|", True),
    "CTC without cleanup": decoders.CTC("[PAD]", "|", False),
    "BPEDecoder": decoders.BPEDecoder("</w>"),
    "empty sequence": decoders.Sequence([]),
    "Llama 2": llama,
    "Gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "sequence within a sequence": decoders.Sequence([decoders.Sequence([llama]), decoders.Replace("the", "The")]),
    "Japanese Unigram": decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()]
    ),
    "ByteFallback after Metaspace": decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()]),
    "Strip at both ends": decoders.Sequence([decoders.Fuse(), decoders.Strip("▁", 2, 3)]),
    "Replace in the joined text": decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "-")]),
    "expression in the joined text": decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("a+b"), "-")]),
    "ByteLevel and Replace": decoders.Sequence([decoders.ByteLevel(), decoders.Replace("e", "")]),
}  # fmt: skip

# Steps of random sequences. A Strip that takes from the end is left out: `tokenizers` panics at a token without text.
STEPS = [
    *[d for name, d in DECODERS.items() if not isinstance(d, decoders.Sequence | None)],
    *[decoders.Replace("the", "a"), decoders.Replace(Regex("b|$"), "é"), decoders.Strip("a", 2, 0)],
]


def vocabulary() -> list[str]:
    return [*SPECIAL, *BYTES, *PIECES]


def bpe(tokens: Sequence[str]) -> Any:
    return models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)


def unigram(tokens: Sequence[str]) -> Any:
    return models.Unigram([(token, -float(i)) for i, token in enumerate(tokens)], unk_id=0, byte_fallback=True)


def word_piece(tokens: Sequence[str]) -> Any:
    return models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="<unk>")


def word_level(tokens: Sequence[str]) -> Any:
    return models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>")


MODELS = {"BPE": bpe, "Unigram": unigram, "WordPiece": word_piece, "WordLevel": word_level}


def pipeline_of(model: str, decoder: Any) -> Pipeline:
    pipeline = Pipeline(MODELS[model](vocabulary()))
    if decoder is not None:
        pipeline.decoder = decoder
    pipeline.add_special_tokens(SPECIAL)
    pipeline.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return pipeline


def load(folder: Path, pipeline: Pipeline) -> Tokenizer:
    pipeline.save(str(folder / "tokenizer.json"))
    return load_tokenizer(VocabularyFile({}, kind="safetensors", path=folder))


def sequences(pipeline: Pipeline, count: int, seed: int) -> list[list[int]]:
    """Random ids, some of them outside of the vocabulary, some runs of bytes that are characters."""
    rng = random.Random(seed)
    size = pipeline.get_vocab_size()
    spelled = [[3 + byte for byte in text.encode()] for text in ("é", "日", "🦙", "\n")]
    pieces = list(range(3 + 256, size))
    found = []
    for _ in range(count):
        parts: list[list[int]] = []
        for _ in range(rng.randint(0, 9)):
            one = [rng.choice(pieces)] if rng.random() < 0.6 else [rng.randrange(size + 3)]
            parts.append(rng.choice(spelled) if rng.random() < 0.2 else one)
        found.append([i for part in parts for i in part])
    return found


def check(pipeline: Pipeline, tokenizer: Tokenizer, ids: list[int]) -> None:
    for skip in (True, False):
        expected = pipeline.decode(ids, skip_special_tokens=skip)
        stream = tokenizer.stream(skip_special=skip)
        streamed = "".join([stream.push(i) for i in ids]) + stream.flush()
        assert tokenizer.decode(ids, skip_special=skip) == expected, ids
        assert streamed == expected, ids


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_over_every_model(model: str, name: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(model, DECODERS[name])
    tokenizer = load(tmp_path, pipeline)
    stripping = name == "Strip at both ends"  # `tokenizers` panics where nothing is left to strip
    for i in range(pipeline.get_vocab_size() + 2):
        check(pipeline, tokenizer, [3 + 256 + 5, i] if stripping else [i])
    for ids in sequences(pipeline, 150, seed=len(name)):
        check(pipeline, tokenizer, [3 + 256 + 5, *ids] if stripping else ids)


def test_random_sequences_of_decoders(tmp_path: Path) -> None:
    rng = random.Random(11)
    for _ in range(120):
        steps = [rng.choice(STEPS) for _ in range(rng.randint(1, 4))]
        pipeline = pipeline_of("WordLevel", decoders.Sequence(steps))
        tokenizer = load(tmp_path, pipeline)
        for ids in sequences(pipeline, 40, seed=rng.randrange(1 << 30)):
            check(pipeline, tokenizer, ids)


def test_text_that_a_unigram_model_spells_in_bytes(tmp_path: Path) -> None:
    pipeline = pipeline_of("Unigram", DECODERS["Japanese Unigram"])
    tokenizer = load(tmp_path, pipeline)
    text = "éa\n🦙日b\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
    assert tokenizer.token_bytes(BYTES.index("<0x0A>") + 3) == b"\n"
    assert tokenizer.token_bytes(BYTES.index("<0xC3>") + 3) == b"\xc3"


def test_a_stream_holds_only_what_a_later_token_can_change(tmp_path: Path) -> None:
    pipeline = pipeline_of("BPE", llama)
    stream = load(tmp_path, pipeline).stream()
    tokens = ["▁the", "▁", "a", "<0xC3>", "<0xA9>", "<0x0A>", "▁the", "b"]
    pieces = [stream.push(pipeline.token_to_id(token)) for token in tokens]
    assert pieces == ["the", " ", "a", "", "", "", "é\n the", "b"]
    assert stream.flush() == ""


CONTINUED = [
    ("Llama 2", ["the"], ["▁the"], " the"),  # no space is stripped behind a prompt
    ("Metaspace always", ["the"], ["▁the"], " the"),
    ("WordPiece", ["the"], ["a", "##ed"], " aed"),
    ("BPEDecoder", ["un</w>"], ["a"], " a"),  # the space shows that a word has ended
    ("Llama 2", ["<0x0A>"], ["a"], "a"),  # a line end of the prompt is the prompt's
    ("Llama 2", ["a", "<0xC3>"], ["<0xA9>", "a"], "éa"),
    ("ByteLevel", ["a", "Ã"], ["©", "a"], "éa"),
    ("Fuse", ["a"], ["b"], "b"),
    ("none", ["a"], ["b"], " b"),
    ("CTC", ["h"], ["h", "l"], "l"),
    ("expression in the joined text", ["a"], ["b"], "b"),
    ("Replace in the joined text", ["a"], ["b"], "b"),
    ("Strip at both ends", ["a", "▁"], ["b"], "b"),
]


@pytest.mark.parametrize(("name", "prompt", "answer", "expected"), CONTINUED)
def test_an_answer_goes_on_where_the_prompt_ends(
    name: str, prompt: list[str], answer: list[str], expected: str, tmp_path: Path
) -> None:
    pipeline = pipeline_of("WordLevel", DECODERS[name])
    tokenizer = load(tmp_path, pipeline)
    special = pipeline.token_to_id("</s>")
    before, ids = ([pipeline.token_to_id(token) for token in tokens] for tokens in (prompt, answer))
    for prompt_ids in (before, [*before, special], [*before * 30, *[special] * 30]):
        stream = tokenizer.stream(prompt_ids=prompt_ids)
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == expected


def test_bytes_that_a_token_adds_within_a_text(tmp_path: Path) -> None:
    expected = {
        ("Llama 2", "▁the"): b" the", ("Llama 2", "<0xC3>"): b"\xc3", ("Llama 2", "<tool>"): b"<tool>",
        ("ByteLevel", "Ġthe"): b" the", ("ByteLevel", "Ã"): b"\xc3", ("WordPiece", "the"): b" the",
        ("WordPiece", "##ed"): b"ed", ("BPEDecoder", "un</w>"): b"un ", ("CTC", "|"): b" ", ("none", "a"): b" a",
        ("Metaspace always", "▁the"): b" the", ("Replace", "ab"): b"xyzb", ("ByteFallback", "</s>"): b"</s>",
        ("Replace by expression", "ab"): b"-", ("expression in the joined text", "ab"): b"-",
    }  # fmt: skip
    for (name, token), added in expected.items():
        pipeline = pipeline_of("WordLevel", DECODERS[name])
        assert load(tmp_path, pipeline).token_bytes(pipeline.token_to_id(token)) == added, (name, token)


def test_the_cases_cover_every_kind_of_decoder() -> None:
    kinds = {name for name in dir(decoders) if isinstance(getattr(decoders, name), type)} - {"Decoder", "DecodeStream"}
    flat = itertools.chain.from_iterable([type(d).__name__] for d in [*DECODERS.values(), *STEPS])
    assert kinds <= set(flat)
