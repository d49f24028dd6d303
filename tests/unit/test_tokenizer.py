"""Encoding, decoding and special tokens, with small vocabularies as GGUF files carry them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pagoda.errors import FormatError, UnsupportedError
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import CONTROL, NORMAL, VocabularyFile, bpe_metadata, spm_metadata

KEY = "tokenizer.ggml."


def bpe(**changes: Any) -> Tokenizer:
    return load_tokenizer(VocabularyFile(bpe_metadata(**{KEY + name: value for name, value in changes.items()})))


def spm(**changes: Any) -> Tokenizer:
    return load_tokenizer(VocabularyFile(spm_metadata(**{KEY + name: value for name, value in changes.items()})))


def id_of(tokenizer: Tokenizer, text: str) -> int:
    return list(tokenizer.vocabulary.tokens).index(text)


@pytest.mark.parametrize("make", [bpe, spm])
def test_names_of_control_tokens_are_text_unless_asked_for(make: Any) -> None:
    tokenizer = make()
    name = tokenizer.token_bytes(tokenizer.eos_id).decode()
    text = f"a{name}b"
    plain = tokenizer.encode(text, add_special=False)
    assert not any(tokenizer.is_special(i) for i in plain)
    assert tokenizer.decode(plain) == text
    parsed = tokenizer.encode(text, add_special=False, parse_special=True)
    assert parsed.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(parsed, skip_special=False).replace(" ", "") == text


def test_a_control_token_that_a_merge_list_could_build_stays_out_of_text() -> None:
    """llama-bpe takes a word that is a token as a whole: not if it is a control token."""
    metadata = bpe_metadata("llama-bpe")
    tokens, types = [*metadata[KEY + "tokens"], "stop"], [*metadata[KEY + "token_type"], CONTROL]
    tokenizer = load_tokenizer(VocabularyFile({**metadata, KEY + "tokens": tokens, KEY + "token_type": types}))
    assert len(tokens) - 1 not in tokenizer.encode("stop stop")
    assert tokenizer.encode("stop", add_special=False, parse_special=True) == [len(tokens) - 1]


def test_sentencepiece_never_merges_into_a_control_token() -> None:
    pieces = ["<", "s", ">", "<s", "x"]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    types = [2, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * len(pieces)]
    changes = {"tokens": tokens, "token_type": types, "scores": [0.0] * len(tokens), "add_space_prefix": False}
    tokenizer = spm(**changes)
    assert tokenizer.encode("<s>", add_special=False) == [id_of(tokenizer, "<s"), id_of(tokenizer, ">")]


@pytest.mark.parametrize("make", [bpe, spm])
def test_user_defined_tokens_are_always_found(make: Any) -> None:
    tokenizer = make()
    tool = id_of(tokenizer, "<tool>")
    assert tool in tokenizer.encode("x<tool>y")
    assert not tokenizer.is_special(tool)
    assert "<tool>" in tokenizer.decode([tool])


def test_frames_follow_the_metadata() -> None:
    assert spm().encode("") == [1]
    assert spm(add_bos_token=False, add_eos_token=True).encode("") == [2]
    assert spm().encode("", add_special=False) == []
    tokenizer = bpe()
    assert tokenizer.encode("") == []
    assert bpe(add_bos_token=True, add_eos_token=True).encode("") == [tokenizer.bos_id, tokenizer.eos_id]
    llama3 = load_tokenizer(VocabularyFile({k: v for k, v in bpe_metadata("llama-bpe").items() if "add_bos" not in k}))
    assert llama3.encode("") == [
        llama3.bos_id
    ]  # this pre-tokenizer's models want BOS though their files may not say so


def test_a_frame_token_that_does_not_exist_is_left_out() -> None:
    assert bpe(bos_token_id=10**9, add_bos_token=True).encode("") == []


def test_ends_of_turn_are_known_by_declaration_and_by_name() -> None:
    tokenizer = bpe()
    names = {tokenizer.token_bytes(i) for i in tokenizer.eos_ids}
    assert names == {b"<|im_end|>", b"<|endoftext|>"}
    declared = bpe(eot_token_id=tokenizer.bos_id)
    assert declared.eos_ids == tokenizer.eos_ids | {tokenizer.bos_id}


def test_a_normal_token_that_is_spelled_like_an_end_of_turn_is_text() -> None:
    metadata = bpe_metadata()
    size = len(metadata[KEY + "tokens"])
    changes = {KEY + "tokens": [*metadata[KEY + "tokens"], "<|end|>"]}
    changes[KEY + "token_type"] = [*metadata[KEY + "token_type"], NORMAL]
    assert size not in load_tokenizer(VocabularyFile({**metadata, **changes})).eos_ids


def test_an_end_that_is_declared_and_named_like_one_is_special_even_if_the_file_calls_it_normal() -> None:
    metadata = bpe_metadata()
    tokenizer = bpe(token_type=[NORMAL] * len(metadata[KEY + "tokens"]))
    assert tokenizer.is_special(tokenizer.eos_id)
    assert tokenizer.decode([tokenizer.eos_id]) == ""


@pytest.mark.parametrize("make", [bpe, spm])
def test_broken_unicode_becomes_the_replacement_character(make: Any) -> None:
    tokenizer = make()
    encode = tokenizer.encode
    assert encode("a\ud800b") == encode("a\ufffdb")
    assert encode("\ud83d\ude00") == encode("😀")  # two halves of one character
    assert encode(b"a\xffb") == encode("a\ufffdb")
    assert encode("é".encode()) == encode("é")


@pytest.mark.parametrize("make", [bpe, spm])
def test_ids_outside_of_the_vocabulary_are_special_and_empty(make: Any) -> None:
    """The output matrix of a model may have more rows than its vocabulary has tokens."""
    tokenizer = make()
    for token_id in (tokenizer.vocab_size, 10**9, -1):
        assert tokenizer.is_special(token_id)
        assert tokenizer.token_bytes(token_id) == b""
        assert tokenizer.decode([token_id], skip_special=False) == ""


def test_sentencepiece_adds_a_leading_space_and_takes_it_away() -> None:
    tokenizer = spm()
    ids = tokenizer.encode("the", add_special=False)
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == b" the"
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"
    bare = spm(add_space_prefix=False)
    assert b"".join(bare.token_bytes(i) for i in bare.encode("the", add_special=False)) == b"the"


def test_a_character_without_a_token_becomes_bytes_and_without_those_unknown() -> None:
    tokenizer = spm()
    ids = tokenizer.encode("ꙮ", add_special=False)[-3:]
    assert [tokenizer.vocabulary.tokens[i] for i in ids] == ["<0xEA>", "<0x99>", "<0xAE>"]
    types = [NORMAL if kind == 6 else kind for kind in spm_metadata()[KEY + "token_type"]]
    assert spm(token_type=types).encode("ꙮ", add_special=False)[-3:] == [0, 0, 0]


def test_bytes_that_a_byte_level_vocabulary_lacks_are_left_out() -> None:
    metadata = bpe_metadata()
    tokens = ["unreachable" if token == "Ā" else token for token in metadata[KEY + "tokens"]]  # Ā spells byte 0
    tokenizer = bpe(tokens=tokens, merges=[merge for merge in metadata[KEY + "merges"] if "Ā" not in merge])
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "ab"


def test_one_tokenizer_serves_many_threads() -> None:
    tokenizer = spm()
    texts = [f"the {n} cats<tool> ate {'é' * n}" for n in range(200)]
    alone = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model": "t5"}, "t5"), ({"model": None}, "None"), ({"pre": "nonesuch"}, "nonesuch"), ({"pre": 3}, "3")],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        bpe(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": [1, 2, 3]},
        {"tokens": "text"},
        {"merges": None},
        {"merges": ["no-space"]},
        {"merges": [" b"]},
        {"token_type": [1]},
        {"token_type": ["x"] * 2000},
    ],
)
def test_inconsistent_metadata_is_a_format_error(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=KEY):
        bpe(**changes)


@pytest.mark.parametrize("scores", [[], [0.0], ["x"] * 2000])
def test_scores_of_sentencepiece_are_for_each_token(scores: Any) -> None:
    with pytest.raises(FormatError, match="scores"):
        spm(scores=scores)


def test_entries_that_are_not_utf8_do_no_harm() -> None:
    """The reader hands over bytes that are not UTF-8 as surrogates."""
    for make, metadata in ((bpe, bpe_metadata()), (spm, spm_metadata())):
        tokens = [*metadata[KEY + "tokens"], "\udcff\udcfe"]
        more = {"tokens": tokens, "token_type": [*metadata[KEY + "token_type"], NORMAL]}
        if KEY + "scores" in metadata:
            more["scores"] = [*metadata[KEY + "scores"], 0.0]
        tokenizer = make(**more)
        assert tokenizer.token_bytes(len(tokens) - 1) == b"\xff\xfe"
        assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
