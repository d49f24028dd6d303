"""Which pre-tokenizer a GGUF file names for the pipelines that families publish in their tokenizer.json; what becomes
of the rest of a folder's tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split, Whitespace

from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import open_checkpoint as open_gguf
from pagoda.formats.gguf_writer import GGUFWriter, text
from pagoda.quantize.gguf.tokenizer_values import find_pre_tokenizer, tokenizer_values
from pagoda.text.tokenizer import load_tokenizer
from pagoda.text.vocabulary import byte_alphabet
from tokenizer_files import VocabularyFile

TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut_by(pattern: str) -> PreTokenizer:
    bytes_only = ByteLevel(add_prefix_space=False, use_regex=False)
    return Sequence([Split(Regex(pattern), behavior="isolated"), bytes_only])


GPT2 = ByteLevel(add_prefix_space=False)
PUBLISHED = {
    "GPT-2": (GPT2, False, "gpt-2"),
    "SmolLM2": (Sequence([Digits(individual_digits=True), GPT2]), False, "smollm"),
    "Llama 3": (cut_by(rf"{WORDS}|\p{{N}}{{1,3}}|{TAIL}"), True, "llama-bpe"),
    "Qwen2": (cut_by(rf"{WORDS}|\p{{N}}|{TAIL}"), False, "qwen2"),
    "Mistral Nemo": (cut_by(TEKKEN), True, "tekken"),
}  # fmt: skip


def named(step: PreTokenizer | None, ignore_merges: bool = False) -> str:
    pipeline = Tokenizer(BPE())
    if step is not None:
        pipeline.pre_tokenizer = step
    return find_pre_tokenizer(pipeline, ignore_merges)


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_pipelines_have_names(family: str) -> None:
    step, ignore_merges, name = PUBLISHED[family]
    assert named(step, ignore_merges) == name


def test_what_cuts_otherwise_is_refused() -> None:
    for step in (None, Whitespace(), cut_by(r"\p{N}{1,2}|" + TAIL)):
        with pytest.raises(UnsupportedError, match=r"no pre-tokenizer that GGUF files can name .* smollm"):
            named(step)


# Folders as GGUF metadata. The class of inputs: any tokenizer.json with the files beside it. What GGUF can say, it
# says, so that the right tokens of a text are those of the folder; what it cannot say is refused by name.

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TAGS = ["<unk>", "<s>", "</s>"]
PIECES = [*TAGS, *BYTES, "▁", "t", "h", "e", "th", "the", "▁the", "▁▁", "n"]
LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
GEMMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
PROBES = ["the the", " the", "é\n  the", "<s>the</s> the<tool>n", "n<tool>", "e\u0301 naïve", ""]


def byte_level() -> Tokenizer:
    tokens = [*byte_alphabet(), "th", "the", "in"]
    merges = [("t", "h"), ("th", "e"), ("i", "n")]
    pipeline = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    pipeline.pre_tokenizer = GPT2
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens(TAGS)
    pipeline.add_tokens([AddedToken("<tool>", normalized=False)])
    return pipeline


def sentencepiece(prefix: bool = True, **options: Any) -> Tokenizer:
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    ids = {token: i for i, token in enumerate(PIECES)}
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, **options}
    pipeline = Tokenizer(BPE(ids, merges, **options))
    first = [normalizers.Prepend("▁")] if prefix else []
    pipeline.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    pipeline.decoder = LLAMA if prefix else GEMMA
    pipeline.add_special_tokens(TAGS)
    pipeline.add_tokens([AddedToken("<tool>", normalized=False)])
    return pipeline


def changed(make: Callable[[], Tokenizer], **parts: Any) -> Callable[[], Tokenizer]:
    """`make`, with other parts; `added` are more tokens."""

    def made() -> Tokenizer:
        pipeline = make()
        for name, part in parts.items():
            if name == "added":
                pipeline.add_tokens(part)
            else:
                setattr(pipeline, name, part)
        return pipeline

    return made


def converted(folder: Path, pipeline: Tokenizer, rows: int = 300, **files: Any) -> tuple[Any, Any]:
    """The tokenizers of a folder and of the GGUF file made from it."""
    pipeline.save(str(folder / "tokenizer.json"))
    config = files.get("config", {})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    values = {
        "general.architecture": text("llama"),
        "general.name": text(folder.name),
        **tokenizer_values(folder, config, rows),
    }
    with GGUFWriter(folder / "model.gguf", values, []):
        pass
    with open_gguf(folder / "model.gguf") as opened:
        metadata = dict(opened.metadata)
    ours = load_tokenizer(VocabularyFile(config, kind="safetensors", path=folder))
    return ours, load_tokenizer(VocabularyFile(metadata))


NAMED = {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}}


def metaspace(scheme: str, split: bool) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


SAID: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "byte level": (byte_level, {}),
    "NFC": (changed(byte_level, normalizer=normalizers.NFC()), {}),
    "an empty sequence of normalizers": (changed(byte_level, normalizer=normalizers.Sequence([])), {}),
    "BOS and EOS": (byte_level, {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>",
                                                     "add_bos_token": True, "add_eos_token": True}}),
    "tokens beside tokenizer.json": (byte_level, {"added_tokens": {"<im>": 263, "<q>": 264},
                                                  "special_tokens_map": {"eos_token": "<im>"}}),
    "Llama 2": (sentencepiece, NAMED),
    "Gemma": (changed(partial(sentencepiece, False),
                      pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")), NAMED),
    "Metaspace that puts nothing first": (
        changed(partial(sentencepiece, False), normalizer=None, pre_tokenizer=metaspace("never", False)), NAMED),
    "Metaspace as the decoder's first step": (
        changed(partial(sentencepiece, False), decoder=decoders.Sequence(
            [decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback(), decoders.Fuse()])), NAMED),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_gguf_can_say(case: str, tmp_path: Path) -> None:
    make, files = SAID[case]
    ours, theirs = converted(tmp_path, make(), **files)
    for probe in PROBES:
        for parse_special in (True, False):
            ids = ours.encode(probe, parse_special=parse_special)
            assert theirs.encode(probe, parse_special=parse_special) == ids, probe
            assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.eos_ids == ours.eos_ids
    assert theirs.bos_id == ours.bos_id
    for i in range(ours.vocab_size):
        assert (theirs.token_bytes(i), theirs.is_special(i)) == (ours.token_bytes(i), ours.is_special(i))


def added(text: str, **flags: bool) -> dict[str, Any]:
    return {"added": [AddedToken(text, **{"normalized": False, **flags})]}


REFUSED: dict[str, Callable[[], Tokenizer]] = {
    "a normalizer Lowercase": changed(byte_level, normalizer=normalizers.Lowercase()),
    "a normalizer NFKC": changed(byte_level, normalizer=normalizers.NFKC()),
    r"a normalizer NFC \+ Strip": changed(
        byte_level, normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    ),
    "a decoder null of byte-level": changed(byte_level, decoder=None),
    "a decoder WordPiece of byte-level": changed(byte_level, decoder=decoders.WordPiece()),
    "lstrip of '<mask>'": changed(byte_level, **added("<mask>", lstrip=True)),
    "rstrip of '<user>'": changed(byte_level, **added("<user>", rstrip=True, special=True)),
    "single_word of 'th'": changed(byte_level, **added("th", single_word=True)),
    "normalized of 'e\u0301'": changed(byte_level, normalizer=normalizers.NFC(), **added("e\u0301", normalized=True)),
    "'<s>', '</s>' before a text": changed(
        byte_level, post_processor=processors.TemplateProcessing("<s> </s> $A", None, [("<s>", 260), ("</s>", 261)])
    ),
    "the tokens '<unk>' behind a text": changed(
        byte_level, post_processor=processors.TemplateProcessing("$A <unk>", None, [("<unk>", 259)])
    ),
    "a normalizer Lowercase \\+ Replace": changed(
        sentencepiece, normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    ),
    "a normalizer null": changed(sentencepiece, normalizer=None),
    "prepend_scheme 'first'": changed(sentencepiece, normalizer=None, pre_tokenizer=metaspace("first", False)),
    "prepend_scheme 'always'": changed(sentencepiece, normalizer=None, pre_tokenizer=metaspace("always", False)),
    "splitting at spaces": changed(
        partial(sentencepiece, False), normalizer=None, pre_tokenizer=metaspace("never", True)
    ),
    "a pre-tokenizer Digits": changed(sentencepiece, pre_tokenizer=Digits(individual_digits=True)),
    "byte_fallback false": partial(sentencepiece, byte_fallback=False),
    "ignore_merges": partial(sentencepiece, ignore_merges=True),
    "a decoder Replace": changed(sentencepiece, decoder=GEMMA),
    "normalized of '<x y>'": changed(sentencepiece, **added("<x y>", normalized=True)),
    "dropout": partial(sentencepiece, dropout=0.5),
    "end_of_word_suffix": changed(partial(sentencepiece, end_of_word_suffix="</w>")),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_gguf_cannot_say_is_refused_by_name(message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        converted(tmp_path, REFUSED[message]())


@pytest.mark.parametrize("model", [WordLevel({"a": 0}, unk_token="a"), Unigram([("a", 0.0)], unk_id=0)])
def test_models_that_gguf_cannot_say(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"a {type(model).__name__} tokenizer"):
        converted(tmp_path, Tokenizer(model))


def test_white_space_behind_tokens_is_said_by_the_name_of_phi3(tmp_path: Path) -> None:
    folder = tmp_path / "Phi-3-mini"
    folder.mkdir()
    stripping = [AddedToken(text, rstrip=True, special=True) for text in ("</s>", "<|user|>", "<tool>")]
    ours, theirs = converted(folder, changed(sentencepiece, added=stripping)(), **NAMED)
    for probe in ("<|user|>\n the<tool> \nn<s>\n", *PROBES):
        ids = ours.encode(probe, parse_special=True)
        assert theirs.encode(probe, parse_special=True) == ids
    with pytest.raises(UnsupportedError, match="no rstrip of '</s>', '<tool>' in a model called 'Phi-3-mini'"):
        converted(folder, sentencepiece())


def test_all_that_cannot_be_said_is_named_at_once(tmp_path: Path) -> None:
    make = changed(byte_level, normalizer=normalizers.Lowercase(), **added("<mask>", lstrip=True))
    with pytest.raises(UnsupportedError, match="Lowercase; lstrip"):
        converted(tmp_path, make())


ENDS = [([2, 3, 4], {"eos": 2, "eot": 3, "eom": 4}), ([2], {"eos": 2}), ([2, 3], {"eos": 2, "eot": 3}),
        ([2, 3, 4, 5, 6], {"eos": 2, "eot": 3, "eom": 4})]  # fmt: skip


@pytest.mark.parametrize("place", ["generation_config", "config"])
@pytest.mark.parametrize(("ids", "keys"), ENDS)
def test_a_file_ends_where_its_folder_did(ids: list[int], keys: dict[str, int], place: str, tmp_path: Path) -> None:
    """llama.cpp ends at all ids of `keys`; readers that know `eos_token_ids`, as Ollama does, at every one."""
    config = {"eos_token_id": 2, "vocab_size": 300} if place == "generation_config" else {"eos_token_id": ids}
    ours, theirs = converted(tmp_path, byte_level(), **{"config": config, place: {**config, "eos_token_id": ids}})
    assert theirs.eos_ids == ours.eos_ids
    assert ours.eos_ids == {*ids, 261}  # </s> is known by its name
    metadata = dict(open_gguf(tmp_path / "model.gguf").metadata)
    found = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in keys}
    assert found == keys


def test_an_end_past_the_tokens_is_said(tmp_path: Path) -> None:
    config = {"eos_token_id": [280, 261], "vocab_size": 300}
    ours, theirs = converted(tmp_path, byte_level(), config=config)
    assert theirs.eos_ids == ours.eos_ids == {280, 261}
