"""Tokenizers from a Hugging Face style folder, made here with the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline

from pagoda.errors import FormatError, UnsupportedError
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.text.vocabulary import byte_alphabet
from plain_tokenizers import PlainBPE
from tokenizer_files import VocabularyFile, bpe_metadata
from tricky_texts import texts

KEY = "tokenizer.ggml."


def byte_level() -> Pipeline:
    """The small vocabulary of the GGUF tests as a tokenizer.json of the GPT-2 kind."""
    metadata = bpe_metadata("gpt-2")
    tokens, merges = metadata[KEY + "tokens"], metadata[KEY + "merges"]
    ids = {token: i for i, token in enumerate(tokens[:-4])}
    pipeline = Pipeline(models.BPE(ids, [tuple(merge.split(" ")) for merge in merges]))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens(tokens[-4:-1])
    pipeline.add_tokens([AddedToken("<tool>", normalized=False)])
    return pipeline


def llama2() -> Pipeline:
    """As Llama 2's converter makes it: ▁ for spaces, byte fallback, BOS by the post-processor."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{byte:02X}>" for byte in range(256)],
        "▁",
        "t",
        "h",
        "e",
        "th",
        "the",
        "▁the",
    ]
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    ids = {token: i for i, token in enumerate(tokens)}
    pipeline = Pipeline(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pipeline.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    pipeline.decoder = decoders.Sequence(steps)
    pipeline.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    pipeline.add_special_tokens(tokens[:3])
    return pipeline


def load(folder: Path, pipeline: Pipeline, config: dict[str, Any] | None = None, **files: Any) -> Tokenizer:
    """`files` are the JSON files beside tokenizer.json, by stem."""
    pipeline.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(VocabularyFile(config or {}, kind="safetensors", path=folder))


def test_byte_level_equals_the_plain_one(tmp_path: Path) -> None:
    metadata = bpe_metadata("gpt-2")
    tokenizer = load(tmp_path, byte_level())
    ids = {token: i for i, token in enumerate(metadata[KEY + "tokens"][:-4])}
    plain = PlainBPE(ids, metadata[KEY + "merges"], "gpt-2")
    for text in texts(400, seed=4):
        text = text.encode("utf-8", "replace").decode()
        encoded = tokenizer.encode(text)
        assert encoded == plain.encode(text)
        assert tokenizer.decode(encoded) == text


def test_special_tokens_are_found_only_on_request(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level(), tokenizer_config={"eos_token": "<|im_end|>"})
    size = tokenizer.vocab_size
    tool, end = size - 1, size - 2
    assert tokenizer.eos_id == end
    assert end not in tokenizer.encode("a<|im_end|><tool>")
    assert tokenizer.encode("a<|im_end|><tool>")[-1] == tool
    assert tokenizer.encode("<|im_end|><tool>", parse_special=True) == [end, tool]
    assert tokenizer.is_special(end)
    assert not tokenizer.is_special(tool)
    assert tokenizer.token_bytes(tool) == b"<tool>"
    assert tokenizer.decode([end, tool]) == "<tool>"


def test_every_byte_is_spelled(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level())
    ids = [list(tokenizer.vocabulary.tokens).index(char) for char in byte_alphabet()]
    assert [tokenizer.token_bytes(i) for i in ids] == [bytes([byte]) for byte in range(256)]


def test_llama2_spaces_bytes_and_frames(tmp_path: Path) -> None:
    pipeline = llama2()
    tokenizer = load(tmp_path, pipeline, {"bos_token_id": 1, "eos_token_id": 2})
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    for text in ("the the", "é the", " the", "👍", "the\n  the"):
        assert tokenizer.encode(text) == pipeline.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text == pipeline.decode(pipeline.encode(text).ids)
    assert tokenizer.encode("the") == [1, 265]
    assert tokenizer.encode("", add_special=False) == []
    assert tokenizer.encode("the</s>", add_special=False, parse_special=True) == [265, 2]


def test_settings_overrule_the_post_processor(tmp_path: Path) -> None:
    settings = {"add_bos_token": False, "add_eos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    tokenizer = load(tmp_path, llama2(), tokenizer_config=settings)
    assert tokenizer.encode("the") == [265, 2]


def test_ends_of_turn_come_from_all_files(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, llama2(), {"eos_token_id": 2}, generation_config={"eos_token_id": [2, 263]})
    assert tokenizer.eos_ids == {2, 263}
    named = load(tmp_path, byte_level(), special_tokens_map={"eos_token": "<|endoftext|>"})
    assert {named.token_bytes(i) for i in named.eos_ids} >= {b"<|endoftext|>", b"<|im_end|>"}


def test_word_pieces(tmp_path: Path) -> None:
    ids = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "un": 3, "##fold": 4, "map": 5}
    pipeline = Pipeline(models.WordPiece(ids, unk_token="[UNK]"))
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.WordPiece()
    pipeline.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    pipeline.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    tokenizer = load(tmp_path, pipeline)
    assert tokenizer.encode("unfold map") == [1, 3, 4, 5, 2]
    assert tokenizer.decode([1, 3, 4, 5, 2]) == "unfold map"


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    pipeline = byte_level()
    pipeline.enable_truncation(2)
    pipeline.enable_padding(length=9)
    tokenizer = load(tmp_path, pipeline)
    assert tokenizer.decode(tokenizer.encode("one two three four")) == "one two three four"


def test_a_gap_in_the_ids_is_unused(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, Pipeline(models.WordLevel({"a": 0, "b": 5}, unk_token="a")))
    assert tokenizer.vocab_size == 6
    assert tokenizer.is_special(3)
    assert tokenizer.decode([0, 3, 5]) == "a b"  # as `tokenizers` decodes without a decoder


def test_a_folder_without_tokenizer_json_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json"):
        load_tokenizer(VocabularyFile({}, kind="safetensors", path=tmp_path))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "generation_config"])
@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_broken_files_are_format_errors(tmp_path: Path, name: str, content: str) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(FormatError, match=name):
        load_tokenizer(VocabularyFile({}, kind="safetensors", path=tmp_path))


def test_an_unknown_kind_of_checkpoint_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="onnx"):
        load_tokenizer(VocabularyFile({}, kind="onnx"))
