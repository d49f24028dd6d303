"""Control tokens that stand outside of tokenizer.json, in any of the files beside it.

The class of inputs: a token of the model's vocabulary, of tokenizer.json's added tokens, or of neither, that is listed
in `added_tokens_decoder`, added_tokens.json or a list of extra tokens, or has a role in tokenizer_config.json or
special_tokens_map.json; flagged special here, there, or in both; with ids that agree or do not.

Right values were printed by transformers 5.24.0 (`AutoTokenizer.from_pretrained` of the same files): the ids of TEXT
with control tokens found, and the ids that `decode(skip_special_tokens=True)` leaves out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from pagoda.errors import FormatError
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import VocabularyFile

VOCABULARY = ["<unk>", "<s>", "</s>", "a", "b", "<x>", "<y>", "▁", "ab", "<tool>"]
TEXT = "a <im> <x> </s> <tool> b"


def token(content: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens_decoder`."""
    return {"content": content, "special": special, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, **flags}  # fmt: skip


def pipeline(*added: AddedToken) -> Pipeline:
    """The vocabulary, of which nothing is a control token unless it is added as one."""
    found = Pipeline(models.WordLevel({text: i for i, text in enumerate(VOCABULARY)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.add_tokens(list(added))
    return found


def load(folder: Path, own: Pipeline, files: dict[str, Any]) -> Tokenizer:
    own.save(str(folder / "tokenizer.json"))
    config = files.get("config", {})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(VocabularyFile(config, kind="safetensors", path=folder))


X = AddedToken("<x>", special=False, normalized=False)
X_SPECIAL = AddedToken("<x>", special=True)

# name: (added tokens of tokenizer.json, the files beside it, ids of TEXT, ids left out, id of EOS)
CASES: dict[str, tuple[tuple[AddedToken, ...], dict[str, Any], list[int], set[int], int | None]] = {
    "added_tokens_decoder": (
        (), {"tokenizer_config": {"added_tokens_decoder": {"10": token("<im>"), "2": token("</s>")},
                                  "eos_token": "<im>"}},
        [3, 10, 5, 2, 9, 4], {2, 10}, 10),
    "added_tokens.json": (
        (), {"tokenizer_config": {"eos_token": "<im>"}, "added_tokens": {"<im>": 10, "<q>": 11}},
        [3, 10, 5, 2, 9, 4], {10}, 10),
    "added_tokens.json without any settings": (
        (), {"added_tokens": {"<im>": 10}, "special_tokens_map": {"eos_token": "<im>"}},
        [3, 10, 5, 2, 9, 4], {10}, 10),
    "added_tokens.json names tokens of the vocabulary": (
        (), {"tokenizer_config": {}, "added_tokens": {"<im>": 30, "<x>": 5}}, [3, 10, 5, 2, 9, 4], set(), None),
    "special_tokens_map.json": (
        (), {"tokenizer_config": {}, "special_tokens_map": {"eos_token": "</s>", "bos_token": {"content": "<s>"}}},
        [3, 0, 5, 2, 9, 4], {1, 2}, 2),
    "special_tokens_map.json goes before the settings": (
        (), {"tokenizer_config": {"eos_token": "<x>"}, "special_tokens_map": {"eos_token": "</s>"}},
        [3, 0, 5, 2, 9, 4], {2}, 2),
    "but not where they list tokens": (
        (), {"tokenizer_config": {"eos_token": "<x>", "added_tokens_decoder": {}},
             "special_tokens_map": {"eos_token": "</s>"}},
        [3, 0, 5, 2, 9, 4], {5}, 5),
    "special only in the settings": (
        (X,), {"tokenizer_config": {"added_tokens_decoder": {"5": token("<x>")}}}, [3, 0, 5, 2, 9, 4], {5}, None),
    "special only in tokenizer.json": (
        (X_SPECIAL,), {"tokenizer_config": {"added_tokens_decoder": {"5": token("<x>", False)}}},
        [3, 0, 5, 2, 9, 4], {5}, None),
    "a role makes an added token special": (
        (X,), {"tokenizer_config": {"eos_token": "<x>"}}, [3, 0, 5, 2, 9, 4], {5}, 5),
    "a role as an object": (
        (X,), {"tokenizer_config": {"eos_token": token("<x>") | {"__type": "AddedToken"}}},
        [3, 0, 5, 2, 9, 4], {5}, 5),
    "additional_special_tokens": (
        (), {"tokenizer_config": {"additional_special_tokens": ["<x>", "<im>"]}}, [3, 10, 5, 2, 9, 4], {5, 10}, None),
    "extra_special_tokens": (
        (), {"tokenizer_config": {"extra_special_tokens": ["<x>", "<im>"]}}, [3, 10, 5, 2, 9, 4], {5, 10}, None),
    "extra_special_tokens with roles": (
        (), {"tokenizer_config": {"extra_special_tokens": {"image_token": "<im>"}}}, [3, 10, 5, 2, 9, 4], {10}, None),
    "of both names the new one": (
        (), {"tokenizer_config": {"extra_special_tokens": ["<x>"], "additional_special_tokens": ["<im>"]}},
        [3, 0, 5, 2, 9, 4], {5}, None),
    "additional_special_tokens of the map": (
        (), {"tokenizer_config": {}, "special_tokens_map": {"additional_special_tokens": ["<im>", "<x>"]}},
        [3, 10, 5, 2, 9, 4], {5, 10}, None),
    "roles of tokens that are nowhere else": (
        (), {"tokenizer_config": {"pad_token": "[PAD]", "eos_token": "<im>"}}, [3, 10, 5, 2, 9, 4], {10, 11}, 10),
    "roles of the model's own": (
        (), {"tokenizer_config": {"image_token": "<im>", "foo_token": "<x>"}}, [3, 10, 5, 2, 9, 4], {5, 10}, None),
    "listed ids give the order alone": (
        (), {"tokenizer_config": {"added_tokens_decoder": {"50": token("<im>"), "12": token("<q>")}}},
        [3, 11, 5, 2, 9, 4], {10, 11}, None),
    "a listed id of a token that has one": (
        (), {"tokenizer_config": {"added_tokens_decoder": {"50": token("<x>")}}}, [3, 0, 5, 2, 9, 4], {5}, None),
    "null": ((), {"tokenizer_config": {}, "special_tokens_map": {"eos_token": None}}, [3, 0, 5, 2, 9, 4], set(), None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_tokens_beside_tokenizer_json(case: str, tmp_path: Path) -> None:
    added, files, ids, left_out, eos = CASES[case]
    tokenizer = load(tmp_path, pipeline(*added), files)
    assert tokenizer.encode(TEXT, add_special=False, parse_special=True) == ids
    assert {i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)} == left_out
    assert {i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]) == ""} == left_out
    assert tokenizer.eos_id == eos
    assert tokenizer.eos_ids >= ({eos} - {None})


@pytest.mark.parametrize("case", CASES)
def test_names_of_control_tokens_in_text_stay_text(case: str, tmp_path: Path) -> None:
    added, files, _, left_out, _ = CASES[case]
    tokenizer = load(tmp_path, pipeline(*added), files)
    inside = tokenizer.encode(TEXT.replace(" ", ""), add_special=False)
    assert not left_out.intersection(inside)


def test_a_strip_flag_of_the_settings_counts(tmp_path: Path) -> None:
    """transformers: the flags of `added_tokens_decoder` replace those of tokenizer.json."""
    files = {"tokenizer_config": {"added_tokens_decoder": {"5": token("<x>", lstrip=True)}}}
    own = pipeline(X_SPECIAL)
    own.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")
    assert load(tmp_path, own, files).encode("a  <x>", add_special=False, parse_special=True) == [3, 5]


def test_the_eos_of_config_json_stands_outside_of_tokenizer_json(tmp_path: Path) -> None:
    files = {"added_tokens": {"<im>": 10}, "config": {"eos_token_id": 10, "vocab_size": 12}}
    tokenizer = load(tmp_path, pipeline(), files)
    assert tokenizer.eos_id == 10
    assert tokenizer.eos_ids == {10}


def test_a_role_that_names_no_token_leaves_the_id_of_config_json(tmp_path: Path) -> None:
    """The text would get id 10, which the model does not know; its own EOS is 2."""
    files = {"tokenizer_config": {"eos_token": "<nope>"}, "config": {"eos_token_id": 2, "vocab_size": 10}}
    tokenizer = load(tmp_path, pipeline(), files)
    assert tokenizer.vocab_size == 10
    assert tokenizer.eos_id == 2
    assert 0 in tokenizer.encode("<nope>", parse_special=True)  # text, and unknown to this vocabulary


def test_null_means_that_there_is_none(tmp_path: Path) -> None:
    files = {"tokenizer_config": {"bos_token": None, "eos_token": "</s>"}, "config": {"bos_token_id": 1}}
    assert load(tmp_path, pipeline(), files).bos_id is None


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": ["<x>"]}},
        {"tokenizer_config": {"added_tokens_decoder": {"x": token("<x>")}}},
        {"tokenizer_config": {"added_tokens_decoder": {"5": "<x>"}}},
        {"added_tokens": {"<x>": "5"}},
    ],
)
def test_files_that_hold_no_tokens_are_format_errors(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="token"):
        load(tmp_path, pipeline(), files)


def test_keys_that_stand_twice(tmp_path: Path) -> None:
    """transformers reads these files with Python's JSON: the last one counts."""
    pipeline(X).save(str(tmp_path / "tokenizer.json"))
    text = (tmp_path / "tokenizer.json").read_text()
    assert '"special": false' in text
    (tmp_path / "tokenizer.json").write_text(
        "\ufeff" + text.replace('"special": false', '"special": false, "special": true')
    )
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<y>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(VocabularyFile({}, kind="safetensors", path=tmp_path))
    assert tokenizer.is_special(5)
    assert tokenizer.eos_id == 2
