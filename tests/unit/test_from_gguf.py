"""What GGUF metadata make of tokens: which are control tokens, and what files that leave things out still mean.

The classes of inputs:

- `bos_token_id` and the like name any token: an ordinary one (a comma), a merged word, a control token, none;
- `token_type` says anything of any token, or is not there;
- SentencePiece vocabularies without `scores`;
- `merges` that make or need tokens that are not there, and merges that stand twice.

Right values are llama.cpp's (libllama of llama-cpp-python 0.3.36, over the same vocabularies in vocab-only files),
where no other source is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from pagoda.errors import UnsupportedError
from pagoda.text.bpe import pre_tokenizer
from pagoda.text.to_json import pipeline_of
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.text.vocabulary import TokenType
from tokenizer_files import BYTE, CONTROL, NORMAL, VocabularyFile, bpe_metadata, spm_metadata

KEY = "tokenizer.ggml."


def load(metadata: Mapping[str, Any], **changes: Any) -> Tokenizer:
    changed = {**metadata, **{KEY + name: value for name, value in changes.items()}}
    return load_tokenizer(VocabularyFile({key: value for key, value in changed.items() if value is not None}))


BPE = bpe_metadata()
SPM = spm_metadata()
BPE_IDS = {text: i for i, text in enumerate(BPE[KEY + "tokens"])}
SPM_IDS = {text: i for i, text in enumerate(SPM[KEY + "tokens"])}
TEXT = "a, b, the cat"


@pytest.mark.parametrize("role", ["bos", "eos", "eot", "eom", "unknown", "padding"])
@pytest.mark.parametrize("token", [",", "Ġthe", "the", "a"])
def test_an_id_does_not_turn_text_into_a_control_token(role: str, token: str) -> None:
    plain, tokenizer = load(BPE), load(BPE, **{f"{role}_token_id": BPE_IDS[token]})
    for parse_special in (True, False):
        ids = tokenizer.encode(TEXT, add_special=False, parse_special=parse_special)
        assert ids == plain.encode(TEXT, add_special=False)
        assert tokenizer.decode(ids) == TEXT
    assert not tokenizer.is_special(BPE_IDS[token])
    assert tokenizer.token_bytes(BPE_IDS[token]) == token.replace("Ġ", " ").encode()
    assert (BPE_IDS[token] in tokenizer.eos_ids) == (role in ("eos", "eot", "eom"))


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_an_id_does_not_turn_a_sentencepiece_into_a_control_token(role: str) -> None:
    plain, tokenizer = load(SPM), load(SPM, **{f"{role}_token_id": SPM_IDS["▁the"]})
    ids = tokenizer.encode(TEXT, add_special=False, parse_special=True)
    assert ids == plain.encode(TEXT, add_special=False)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.vocabulary.types == plain.vocabulary.types


def test_an_ordinary_bos_still_frames_a_text_that_asks_for_it() -> None:
    tokenizer = load(BPE, bos_token_id=BPE_IDS[","], add_bos_token=True)
    assert tokenizer.encode("a") == [BPE_IDS[","], BPE_IDS["a"]]
    assert tokenizer.decode(tokenizer.encode("a")) == ",a"


def test_a_control_token_that_no_id_names_is_one_all_the_same() -> None:
    tokenizer = load(BPE, bos_token_id=None, eos_token_id=None)
    assert tokenizer.is_special(BPE_IDS["<|im_start|>"])
    assert tokenizer.encode("<|im_start|>", parse_special=True) == [BPE_IDS["<|im_start|>"]]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)
    assert tokenizer.eos_ids == {BPE_IDS["<|im_end|>"], BPE_IDS["<|endoftext|>"]}


def test_a_file_without_types_is_read_by_looks() -> None:
    """llama.cpp reads <s> as text and shows bytes as <0xC3> then; here they keep their meaning."""
    tokenizer = load(SPM, token_type=None)
    plain = load(SPM)
    text = "the cat é\n"
    ids = tokenizer.encode(text, add_special=False)
    assert ids == plain.encode(text, add_special=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<s>the</s> x", parse_special=True) == plain.encode("<s>the</s> x", parse_special=True)
    assert [tokenizer.vocabulary.types[i] for i in range(4)] == [TokenType.UNKNOWN, TokenType.CONTROL,
                                                                 TokenType.CONTROL, TokenType.BYTE]  # fmt: skip
    assert tokenizer.eos_ids == {2}


def test_a_byte_level_file_without_types_is_read_by_looks() -> None:
    tokenizer = load(BPE, token_type=None, bos_token_id=BPE_IDS[","], eos_token_id=BPE_IDS["<|im_end|>"])
    special = {text for text, i in BPE_IDS.items() if tokenizer.is_special(i)}
    assert special == {"<|endoftext|>", "<|im_end|>"}


def test_without_scores_the_leftmost_pair_is_joined_first() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", "abc"]
    types = [2, 3, 3, *[NORMAL] * 6]
    metadata = {**SPM, KEY + "tokens": tokens, KEY + "token_type": types, KEY + "scores": None}
    tokenizer = load(metadata, add_space_prefix=False)
    found = [tokens[i] for i in tokenizer.encode("abcbcab", add_special=False)]
    assert found == ["abc", "bc", "ab"]


def test_a_merge_may_make_a_token_that_is_not_there() -> None:
    """Merging goes on over it; what is left of it falls apart into bytes."""
    tokens = ["ZZZ" if token == "the" else token for token in BPE[KEY + "tokens"]]
    ids = load(BPE, tokens=tokens).encode("the then there breathe, Other", add_special=False)
    assert ids == [83, 71, 68, 904, 290, 904, 1465, 1495, 319, 71, 68, 11, 220, 46, 322, 298]


def test_a_merge_of_a_missing_token_goes_before_later_ones() -> None:
    tokenizer = load(BPE, merges=["a b", "b c", *BPE[KEY + "merges"]])
    assert tokenizer.encode("abc cab the", add_special=False) == [866, 66, 1085, 866, 478]


def test_a_merge_that_needs_a_missing_token_never_happens() -> None:
    plain, tokenizer = load(BPE), load(BPE, merges=["a nonesuch", "nonesuch b", *BPE[KEY + "merges"]])
    assert tokenizer.encode(TEXT) == plain.encode(TEXT)


def test_of_a_merge_that_stands_twice_the_first_counts() -> None:
    merges = BPE[KEY + "merges"]
    tokenizer = load(BPE, merges=[*merges, *merges[:100]])
    ids = tokenizer.encode("abc cab the then there", add_special=False)
    assert ids == [866, 66, 220, 438, 65, 478, 904, 290, 904, 1465]


def test_text_survives_missing_tokens() -> None:
    kept = [merge for n, merge in enumerate(BPE[KEY + "merges"]) if n % 3]
    made = {"".join(merge.split(" ")) for merge in kept[::2]}
    tokens = [f"[X{i}]" if token in made else token for i, token in enumerate(BPE[KEY + "tokens"])]
    tokenizer = load(BPE, tokens=tokens, merges=kept)
    for text in ("the then there breathe", "naïve 日本 🦙", TEXT):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_a_tokenizer_json_cannot_say_is_refused() -> None:
    tokens = ["ZZZ" if token == "the" else token for token in BPE[KEY + "tokens"]]
    metadata = {**BPE, KEY + "tokens": tokens}
    with pytest.raises(UnsupportedError, match="'the'"):
        pipeline_of(load(metadata).vocabulary, metadata)
    metadata = {key: value for key, value in SPM.items() if key != KEY + "scores"}
    with pytest.raises(UnsupportedError, match="scores"):
        pipeline_of(load(metadata).vocabulary, metadata)


def test_bytes_of_a_file_without_types_are_bytes() -> None:
    vocabulary = load(SPM, token_type=None).vocabulary
    assert [kind for kind in vocabulary.types if kind == BYTE] == [BYTE] * 256


PHI3 = {KEY + "tokens": [*SPM[KEY + "tokens"], "<|user|>", "<|end|>", "<|assistant|>", "<|endoftext|>"],
        KEY + "token_type": [*SPM[KEY + "token_type"], *[CONTROL] * 4],
        KEY + "scores": [*SPM[KEY + "scores"], *[0.0] * 4]}  # fmt: skip


@pytest.mark.parametrize("name", ["Phi-3-mini-4k-instruct", "phi3", "Phi 4"])
def test_tokens_of_phi3_take_the_white_space_behind_them(name: str) -> None:
    """llama.cpp knows it by the model's name; transformers by `rstrip` of the same tokens."""
    tokenizer = load({**SPM, **PHI3, "general.name": name})
    tokens = tokenizer.vocabulary.tokens

    def pieces(text: str) -> list[str]:
        return [tokens[i] for i in tokenizer.encode(text, add_special=False, parse_special=True)]

    def behind(text: str) -> list[str]:
        return [] if name != "Phi 4" else pieces(text)

    assert pieces("<|end|>\n<|user|>") == ["<|end|>", *behind("\n"), "<|user|>"]
    assert pieces("<tool>\n") == ["<tool>", *behind("\n")]
    assert pieces("</s>  \n") == ["</s>", *behind("  \n")]
    assert pieces("<|endoftext|>\n") == ["<|endoftext|>", *pieces("\n")]
    assert pieces("<s>\n") == ["<s>", *pieces("\n")]


O200K = (  # as gpt-oss's tokenizer.json writes it
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    "text",
    [
        "Hello WORLD'S don't I'LL 12345 a/b//\n\n  c",
        "Ünïcödé é̀ हिन्दी 中文abc ABCdef",
        "x=1;\r\n\ty != 'z'",
        "HTTPServer iPhone",
    ],
)
def test_the_pre_tokenizer_of_gpt_oss_cuts_as_its_own_file_does(text: str) -> None:
    def pieces(pattern: str) -> list[str]:
        return [piece for piece, _ in Split(Regex(pattern), "isolated").pre_tokenize_str(text)]

    (pattern,) = pre_tokenizer("gpt-4o").patterns
    assert pieces(pattern) == pieces(O200K)
