"""llguidance sees the tokens that the model's tokenizer has, and cuts texts as it does."""

from __future__ import annotations

import json

import pytest

from grammar_walk import accepts, small_tokenizer
from pagoda.errors import RequestError, UnsupportedError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.source import GrammarSource
from pagoda.grammar.tokens import Vocabulary
from pagoda.text.tokenizer import load_tokenizer
from tokenizer_files import VocabularyFile, spm_metadata

BPE = small_tokenizer()
SPM = load_tokenizer(VocabularyFile(spm_metadata()))


def test_tokens_and_ends_are_the_models() -> None:
    made = Vocabulary(BPE).for_llguidance
    assert made.vocab_size == BPE.vocab_size
    assert set(made.eos_tokens) == set(BPE.eos_ids)
    special = BPE.encode("<|im_start|>", add_special=False, parse_special=True)[0]
    assert made.is_special_token(special)
    (user_defined,) = BPE.encode("<tool>", add_special=False)
    assert not made.is_special_token(user_defined)


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_a_forced_text_is_the_text(tokenizer: object) -> None:
    """SentencePiece puts a space before a text: not before what is forced."""
    text = "the name: an <tool> é日"
    grammar = GrammarCompiler(tokenizer).compile(GrammarSource("choice", json.dumps([text])))  # type: ignore[arg-type]
    forced = grammar.start().forced()
    assert b"".join(tokenizer.token_bytes(i) for i in forced) == text.encode()  # type: ignore[attr-defined]


def test_a_text_that_names_a_control_token_is_no_control_token() -> None:
    grammar = GrammarCompiler(BPE).compile(GrammarSource("regex", "<\\|im_end\\|>"))
    assert accepts(grammar, BPE, "<|im_end|>")
    assert BPE.encode("<|im_end|>", add_special=False, parse_special=True)[0] not in grammar.start().forced()


def test_a_vocabulary_needs_an_end() -> None:
    class Endless:
        eos_ids = frozenset[int]()
        vocab_size = BPE.vocab_size
        encode, token_bytes, is_special = BPE.encode, BPE.token_bytes, BPE.is_special

    with pytest.raises(UnsupportedError, match="no token that ends a text"):
        Vocabulary(Endless())


SOURCES = [
    GrammarSource("choice", '["yes", "\U000f1234"]'),
    GrammarSource("json_schema", json.dumps({"enum": [1, {"a": ")\U000f1234"}]})),
    GrammarSource("json_schema", json.dumps({"type": "object", "properties": {"\U000f1234": {}}})),
    GrammarSource("lark", 'start: "a" | "\U000f1234"'),
    GrammarSource("regex", "a\U000f1234?"),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.kind)
def test_a_text_that_no_tokens_can_say_is_refused(source: GrammarSource) -> None:
    class Poor:
        eos_ids, vocab_size, is_special = BPE.eos_ids, BPE.vocab_size, BPE.is_special

        def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
            ids = BPE.encode(text, add_special=add_special, parse_special=parse_special)
            return [i for i in ids if self.token_bytes(i)]

        def token_bytes(self, token_id: int) -> bytes:
            data = BPE.token_bytes(token_id)
            return b"" if data == b"\xf3" else data

    GrammarCompiler(BPE).compile(source)
    with pytest.raises(RequestError, match=r"no tokens for characters of the grammar: U\+F1234"):
        GrammarCompiler(Poor()).compile(source)
