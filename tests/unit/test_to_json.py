"""A GGUF file's tokenizer as the files of a folder: what they can say they say, what they cannot is refused by name.

The class of inputs: GGUF metadata of both kinds of tokenizers, with every frame, normalizer, set of ends and type of
token, and with what `tokenizers` has no word for. The right tokens are those of the GGUF file itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pagoda.errors import UnsupportedError
from pagoda.text.to_json import write_tokenizer
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from tokenizer_files import CONTROL, NORMAL, VocabularyFile, bpe_metadata, spm_metadata
from tricky_texts import texts

KEY = "tokenizer.ggml."
BPE, SPM = bpe_metadata(), spm_metadata()
BPE_IDS = {text: i for i, text in enumerate(BPE[KEY + "tokens"])}
TEXTS = ["</s>\n the<tool> \n<s> x", "the cat<|im_end|> <s>the</s>", "e\u0301 naïve\n\n  x<tool>y", *texts(60, seed=8)]


def named(**changes: Any) -> dict[str, Any]:
    return {KEY + name: value for name, value in changes.items()}


def both(metadata: Mapping[str, Any], folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of the GGUF file and of the folder made from it."""
    source = VocabularyFile(metadata)
    write_tokenizer(source, folder)
    config = {"bos_token_id": metadata.get(KEY + "bos_token_id"), "eos_token_id": metadata.get(KEY + "eos_token_id")}
    return load_tokenizer(source), load_tokenizer(VocabularyFile(config, kind="safetensors", path=folder))


SAID = {
    "byte level": BPE,
    "byte level, framed": BPE | named(add_bos_token=True, add_eos_token=True),
    "byte level, composed": BPE | {"tokenizer.pagoda.normalizer": "NFC"},
    "an ordinary BOS": BPE | named(bos_token_id=BPE_IDS[","]),
    "an ordinary BOS before each text": BPE | named(bos_token_id=BPE_IDS[","], add_bos_token=True),
    "an ordinary EOS": BPE | named(eos_token_id=BPE_IDS["Ġthe"]),
    "three ends": BPE | named(eos_token_id=2, eot_token_id=3, eom_token_id=4),
    "a merge that needs a missing token": BPE | named(merges=["a nonesuch", *BPE[KEY + "merges"]]),
    "SentencePiece": SPM,
    "tokens that take white space with them": SPM | {"general.name": "Phi-3-mini"},
    "SentencePiece without a space first": SPM | named(add_space_prefix=False),
}


@pytest.mark.parametrize("case", SAID)
def test_what_can_be_said(case: str, tmp_path: Path) -> None:
    theirs, ours = both(SAID[case], tmp_path)
    for text in TEXTS:
        if KEY + "scores" in SAID[case] and set(text) - set("".join(SPM[KEY + "tokens"]) + " "):
            continue
        for parse_special in (True, False):
            ids = theirs.encode(text, parse_special=parse_special)
            assert ours.encode(text, parse_special=parse_special) == ids, text
            assert ours.decode(ids) == theirs.decode(ids)
    assert ours.eos_ids == theirs.eos_ids
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id, theirs.eos_id)
    size = theirs.vocab_size
    assert [ours.is_special(i) for i in range(size)] == [theirs.is_special(i) for i in range(size)]


REFUSED = {
    "'the'": BPE | named(tokens=["ZZZ" if token == "the" else token for token in BPE[KEY + "tokens"]]),
    "scores": {key: value for key, value in SPM.items() if key != KEY + "scores"},
    "are both 'the'": BPE | named(tokens=[*BPE[KEY + "tokens"][:-1], "the"]),
    "not UTF-8": BPE | named(tokens=[*BPE[KEY + "tokens"][:-1], "\udcff"]),
    "'in'": BPE | named(token_type=[CONTROL if token == "in" else NORMAL for token in BPE[KEY + "tokens"]]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_said_is_refused_by_name(message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        write_tokenizer(VocabularyFile(REFUSED[message]), tmp_path)


def test_no_role_makes_a_control_token_of_text(tmp_path: Path) -> None:
    """transformers makes a control token of whatever tokenizer_config.json gives a role."""
    write_tokenizer(VocabularyFile(SAID["an ordinary BOS"]), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "bos_token" not in settings
    assert settings["eos_token"] == "<|im_end|>"
    assert json.loads((tmp_path / "generation_config.json").read_text())["bos_token_id"] == BPE_IDS[","]


def test_text_does_not_merge_into_a_control_token(tmp_path: Path) -> None:
    pieces = ["<", "s", ">", "<s", "x"]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    types = [2, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * len(pieces)]
    changes = named(tokens=tokens, token_type=types, scores=[0.0] * len(tokens), add_space_prefix=False)
    theirs, ours = both(SPM | changes, tmp_path)
    assert ours.encode("<s>x", add_special=False) == theirs.encode("<s>x", add_special=False)
