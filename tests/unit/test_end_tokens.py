"""Which tokens end an answer.

The class of inputs: any set of tokens with names of ends, of any type, beside any declared ids, in GGUF metadata and in
the files of a folder. Right values are llama.cpp's end-of-generation tokens (libllama of llama-cpp-python 0.3.36, over
the same vocabularies in vocab-only files); for tokens of type NORMAL they are Pagoda's own: the type decides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import WordLevel

from pagoda.text.end_tokens import END_TEXTS, FIM_END_TEXTS
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import CONTROL, NORMAL, USER_DEFINED, VocabularyFile, bpe_metadata

KEY = "tokenizer.ggml."
OWN = {"<|endoftext|>", "<|im_end|>"}  # ends that the small vocabulary has anyway

CASES: dict[str, tuple[list[str], set[str]]] = {
    "</s> beside <|im_end|>": (["</s>"], {"</s>"}),
    "Llama 3": (["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|begin_of_text|>"],
                {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}),
    "Qwen": (["<|fim_prefix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
             {"<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}),
    "harmony": (["<|return|>", "<|call|>", "<|end|>", "<|channel|>"], {"<|return|>", "<|call|>"}),
    "Solar": (["<|flush|>", "<|calls|>", "<|end|>"], {"<|flush|>", "<|calls|>"}),
    "Phi 3": (["<|end|>", "<|user|>"], {"<|end|>"}),
    "Gemma 3": (["<eos>", "<end_of_turn>", "<bos>"], {"<eos>", "<end_of_turn>"}),
    "Gemma 4": (["<eos>", "<turn|>", "<|tool_response>", "</s>"], {"<eos>", "<turn|>", "<|tool_response>"}),
    "Kimi": (["[EOS]", "[EOT]", "[PAD]", "[BOS]"], {"[EOS]", "[EOT]", "[PAD]"}),
    "DeepSeek": (["<｜end▁of▁sentence｜>", "<｜fim▁hole｜>"], {"<｜end▁of▁sentence｜>"}),
    "one padding token of two": (["[PAD]", "<|fim_pad|>"], {"<|fim_pad|>"}),
    "nothing known": (["<|other|>", "<pad>"], set()),
}  # fmt: skip


def gguf(extra: list[str], kind: int, **changes: Any) -> Tokenizer:
    metadata = bpe_metadata()
    tokens = [*metadata[KEY + "tokens"], *extra]
    types = [*metadata[KEY + "token_type"], *[kind] * len(extra)]
    named = {KEY + name: value for name, value in {**changes, "tokens": tokens, "token_type": types}.items()}
    return load_tokenizer(VocabularyFile({**metadata, **named}))


def ends(tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.vocabulary.tokens[i] for i in tokenizer.eos_ids}


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
@pytest.mark.parametrize("case", CASES)
def test_ends_known_by_name(case: str, kind: int) -> None:
    extra, expected = CASES[case]
    assert ends(gguf(extra, kind)) == expected | OWN


@pytest.mark.parametrize("case", CASES)
def test_a_normal_token_is_text_whatever_its_name(case: str) -> None:
    assert ends(gguf(CASES[case][0], NORMAL)) == OWN


@pytest.mark.parametrize("name", sorted(END_TEXTS | {name for names in FIM_END_TEXTS.values() for name in names}))
def test_every_known_name_ends_an_answer(name: str) -> None:
    assert ends(gguf([name], CONTROL)) == OWN | {name}


def test_declared_ends_of_any_type() -> None:
    tokenizer = gguf([], CONTROL, eos_token_id=5, eot_token_id=6, eom_token_id=7, fim_pad_token_id=8)
    assert tokenizer.eos_ids >= {5, 6, 7, 8}
    assert tokenizer.eos_id == 5


def test_a_declared_id_of_a_role_goes_before_its_names() -> None:
    tokenizer = gguf(["<|fim_pad|>", "<|file_sep|>"], CONTROL, fim_pad_token_id=9)
    assert ends(tokenizer) == OWN | {"<|file_sep|>", tokenizer.vocabulary.tokens[9]}


def test_a_list_of_ends() -> None:
    assert gguf([], CONTROL, eos_token_ids=[3, 4, 5]).eos_ids >= {3, 4, 5}


def test_a_declared_exception_ends_all_the_same() -> None:
    tokens = ["<|return|>", "<|call|>", "<|end|>"]
    size = len(bpe_metadata()[KEY + "tokens"])
    assert ends(gguf(tokens, CONTROL, eos_token_id=size + 2)) == {*OWN, *tokens}


def folder(path: Path, tokens: list[str], special: bool, config: dict[str, Any], **files: Any) -> Tokenizer:
    pipeline = Pipeline(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    pipeline.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    pipeline.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(VocabularyFile(config, kind="safetensors", path=path))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_folder_ends_where_its_gguf_file_does(case: str, special: bool, tmp_path: Path) -> None:
    extra, expected = CASES[case]
    assert ends(folder(tmp_path, extra, special, {})) == expected


def test_a_folder_ends_at_the_ids_of_all_its_files(tmp_path: Path) -> None:
    files = {"generation_config": {"eos_token_id": [1, 2]}, "tokenizer_config": {"eos_token": "</s>"}}
    tokenizer = folder(tmp_path, ["</s>"], True, {"eos_token_id": 0, "vocab_size": 9}, **files)
    assert tokenizer.eos_ids == {0, 1, 2, 3}
    assert tokenizer.eos_id == 3


def test_an_end_without_a_text_still_ends(tmp_path: Path) -> None:
    """The model may sample an id that the tokenizer has no token for."""
    tokenizer = folder(tmp_path, [], True, {"eos_token_id": 7, "vocab_size": 9})
    assert tokenizer.eos_ids == {7}
    assert tokenizer.decode([0, 7]) == "a"
