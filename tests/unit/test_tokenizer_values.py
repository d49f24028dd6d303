"""Which pre-tokenizer a GGUF file names for the pipelines that families publish in their tokenizer.json."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split, Whitespace

from pagoda.errors import UnsupportedError
from pagoda.quantize.gguf.tokenizer_values import find_pre_tokenizer

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
