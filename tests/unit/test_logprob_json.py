"""`text_offset` of completions: where each token begins in `choices[].text`, in characters, as OpenAI defines it.

The class of inputs: tokens that are characters, parts of characters, several characters, broken UTF-8, control tokens
shown and not shown; prompts echoed as text (framed by BOS and EOS, with a space put first) and as ids; names of tokens
in place of their texts; everything at once or in pieces.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from pagoda.server.logprob_json import LogprobWriter, TextOffsets
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.types import Logprob, TokenLogprobs
from tokenizer_files import VocabularyFile, bpe_metadata, spm_metadata
from tricky_texts import texts

KEY = "tokenizer.ggml."
BPE = load_tokenizer(VocabularyFile(bpe_metadata()))
SPM = load_tokenizer(VocabularyFile(spm_metadata()))
TEXT = "the 🦙, é日\n"


def expected(tokenizer: Tokenizer, ids: Sequence[int], text: str, *, skip_special: bool = True) -> list[int]:
    """From the definition: whole characters of the text that stand before the token."""
    offsets = []
    for n in range(len(ids)):
        kept = [i for i in ids[:n] if not (skip_special and tokenizer.is_special(i))]
        before = b"".join(tokenizer.token_bytes(i) for i in kept)
        offsets.append(len(before.decode("utf-8", "ignore")))
    assert max(offsets, default=0) <= len(text)
    return offsets


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["BPE", "SPM"])
@pytest.mark.parametrize("skip_special", [True, False])
def test_offsets_of_an_answer(tokenizer: Tokenizer, skip_special: bool) -> None:
    end = tokenizer.eos_id
    assert end is not None
    prompt = tokenizer.encode("a", add_special=False)
    for text in (TEXT, *(text.encode("utf-8", "replace").decode() for text in texts(80, seed=6))):
        ids = [*tokenizer.encode(text, add_special=False), end, *tokenizer.encode("the", add_special=False)]
        offsets = TextOffsets(tokenizer, prompt, skip_special=skip_special)
        found = [*offsets.of_answer(ids[:3]), *(offset for i in ids[3:] for offset in offsets.of_answer([i]))]
        shown = tokenizer.decode([*prompt, *ids], skip_special=skip_special)
        assert found == expected(tokenizer, ids, shown, skip_special=skip_special)


def test_a_character_of_many_tokens_is_one_place() -> None:
    ids = BPE.encode("🦙", add_special=False)
    assert len(ids) == 3
    after = [*ids, *BPE.encode(" the", add_special=False)]
    assert TextOffsets(BPE, [], skip_special=True).of_answer(after) == [0, 0, 0, 1]


def test_a_character_that_begins_in_the_prompt() -> None:
    first, *ids = BPE.encode("🦙b", add_special=False)
    assert TextOffsets(BPE, [first], skip_special=True).of_answer(ids) == [0, 0, 1]


def test_broken_bytes_are_characters() -> None:
    """U+FFFD stands for them in the text."""
    ids = [BPE.vocabulary.tokens.index(char) for char in ("ÿ", "ÿ", "a")]  # FF FF 61
    assert BPE.decode(ids) == "\ufffd\ufffda"
    assert TextOffsets(BPE, [], skip_special=True).of_answer(ids) == [0, 1, 2]


def test_names_in_place_of_texts_change_no_offset() -> None:
    ids = BPE.encode(TEXT, add_special=False)
    entries = [TokenLogprobs(Logprob(i, -0.5, 1), ()) for i in ids]
    plain, named = LogprobWriter(BPE), LogprobWriter(BPE, as_ids=True)
    written = [w.completion(entries, ids, w.offsets([]).of_answer(ids)) for w in (plain, named)]
    assert written[0]["text_offset"] == written[1]["text_offset"] == expected(BPE, ids, TEXT)
    assert written[1]["tokens"] == [f"token_id:{i}" for i in ids]


@pytest.mark.parametrize("text", [TEXT, "the cat", " the", "日本", "é\n", ""])
@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["BPE", "SPM"])
def test_offsets_of_an_echoed_text(tokenizer: Tokenizer, text: str) -> None:
    """Neither BOS nor the space that SentencePiece puts first is in the text that was sent."""
    bare = tokenizer.encode(text, add_special=False)
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    assert bos is not None
    assert eos is not None
    ids = [bos, *bare, eos]
    offsets = TextOffsets(tokenizer, ids, skip_special=True)
    found = offsets.of_prompt(ids, text)
    spelled = b"".join(map(tokenizer.token_bytes, bare)).decode()
    shift = len(spelled) - len(text)
    assert shift == (tokenizer is SPM and text != "")
    places = [max(place - shift, 0) for place in expected(tokenizer, bare, spelled)]
    assert found == [0, *places, len(text)]
    after = tokenizer.encode("x", add_special=False)
    assert offsets.of_answer(after)[0] == len(text)


def test_control_tokens_that_the_text_names_take_their_room() -> None:
    text = "<|im_start|>the<|im_end|>é"
    ids = BPE.encode(text, add_special=False, parse_special=True)
    offsets = TextOffsets(BPE, ids, skip_special=True).of_prompt(ids, text)
    assert [text[start:] for start in offsets[:3]] == [text, "the<|im_end|>é", "<|im_end|>é"]
    assert set(offsets[3:]) == {len(text) - 1}


def test_an_echoed_prompt_of_ids_shows_its_control_tokens() -> None:
    ids = [*BPE.encode("<|im_start|>a", add_special=False, parse_special=True), BPE.vocabulary.tokens.index("Ã")]
    text = LogprobWriter(BPE).decode(ids)
    assert TextOffsets(BPE, ids, skip_special=True).of_prompt(ids, text) == [0, 12, 13]


def test_random_ids_stay_within_the_text() -> None:
    rng = random.Random(9)
    for _ in range(200):
        ids = [rng.randrange(BPE.vocab_size) for _ in range(8)]
        text = LogprobWriter(BPE).decode(ids)
        offsets = TextOffsets(BPE, ids, skip_special=True)
        found = [*offsets.of_prompt(ids, text), *offsets.of_answer(ids)]
        assert found == sorted(found)
        assert found[8] == len(text)
