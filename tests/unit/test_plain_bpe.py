"""Gemma 4's tokenizer of GGUF files, against the pipeline that its tokenizer.json states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.normalizers import Replace

from pagoda.errors import FormatError
from pagoda.text.from_gguf import read_gguf
from pagoda.text.plain_bpe import PlainBytePairEncoder

MERGES = ["▁ t", "h e", "▁t he", "▁t h", "o o", "\n \n", "\n\n \n\n", "i n", "in g", "▁ ▁"]
TEXTS = [
    "<pad>",
    "<eos>",
    "<bos>",
    *"▁thenopig\nä",
    "▁t",
    "he",
    "▁the",
    "▁th",
    "oo",
    "\n\n",
    "\n\n\n\n",
    "in",
    "ing",
    "▁▁",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = [*TEXTS, *BYTES]
METADATA = {
    "tokenizer.ggml.model": "gemma4",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(TEXTS) - 3), *[6] * 256],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": False,
}


def pipeline() -> Pipeline:
    pairs = [tuple(merge.split(" ")) for merge in MERGES]
    made = Pipeline(BPE(vocab={t: i for i, t in enumerate(TOKENS)}, merges=pairs, byte_fallback=True))  # type: ignore[arg-type]
    made.normalizer = Replace(" ", "▁")
    return made


PIPELINE = pipeline()


@given(st.text(alphabet="the nopig\nä漢🙂", max_size=40))
def test_ids_are_those_of_the_pipeline(text: str) -> None:
    vocabulary, encode = read_gguf(METADATA)
    ids = encode(text, False)
    assert ids == PIPELINE.encode(text, add_special_tokens=False).ids
    assert b"".join(vocabulary.token_bytes(i) for i in ids).decode() == text


def test_a_text_begins_with_bos_though_the_file_says_that_it_does_not() -> None:
    vocabulary, _ = read_gguf(METADATA)
    assert vocabulary.prefix == (2,)


def test_control_tokens_are_cut_out_first() -> None:
    _, encode = read_gguf(METADATA)
    assert encode("the<eos>\n\n", True) == [*encode("the", False), 1, TOKENS.index("\n\n")]


def test_merges_that_need_no_token_are_refused() -> None:
    with pytest.raises(FormatError, match="merges"):
        PlainBytePairEncoder({"a": 0}, ["a b"], {})
