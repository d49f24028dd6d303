"""The table of families: every file is of one, and every tensor has one name in either kind of file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagoda.models.family import Family
from pagoda.models.names import GGUF, HUGGING_FACE, translate
from pagoda.models.planned import PLANNED
from pagoda.models.registry import FAMILIES, family_of, find_family, known_family
from tiny_models import TINY, memory_checkpoint

KNOWN = (*FAMILIES, *PLANNED)
TWINS = {  # whose GGUF files are read as the same family
    "mimo": "qwen2",
    "qwen2_5_vl": "qwen2_vl",
    "deepseek_v3": "deepseek_v2",
    "glm4_moe_lite": "deepseek_v2",
}


def named(family: Family) -> str:
    return family.name


def test_names_are_unique() -> None:
    assert len({family.name for family in KNOWN}) == len(KNOWN)
    told_apart = [(family.gguf, family.gguf_key) for family in FAMILIES if family.name not in TWINS]
    assert len(set(told_apart)) == len(told_apart)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
@pytest.mark.parametrize("column", [GGUF, HUGGING_FACE])
def test_no_two_tensors_have_one_name(family: Family, column: int) -> None:
    named_apart = ("router_scale", "expert_scales")  # by a suffix of their own
    names = [pair[column] for key, pair in family.tensors.items() if pair[column] and key not in named_apart]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_every_family_has_a_tiny_model(family: Family) -> None:
    assert family.name in {spec.config["model_type"].removesuffix("_text") for spec in TINY.values()}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_files_are_of_their_family(name: str, kind: str) -> None:
    expected = TINY[name].config["model_type"].removesuffix("_text")
    if (name, kind) == ("granite4_attention", "gguf"):  # without layers of Mamba the converter makes it a Granite 3
        expected = "granite"
    expected = TWINS.get(expected, expected) if kind == "gguf" else expected
    assert family_of(memory_checkpoint(TINY[name], kind=kind)).name == expected


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("qwen2_windowed", "qwen3moe_mixed")])
def test_names_translate_there_and_back(name: str) -> None:
    family = find_family(memory_checkpoint(TINY[name]))
    assert family is not None
    for theirs in translate(memory_checkpoint(TINY[name]).tensors, family.tensors, HUGGING_FACE):
        (back,) = translate([theirs.other], family.tensors, GGUF)
        assert back.other.replace("{e}", str(theirs.expert)) == theirs.name
        assert back.role == theirs.role


def test_architectures_that_share_a_name_are_told_by_their_keys() -> None:
    llama = memory_checkpoint(TINY["llama"], kind="gguf")
    for key, value, expected in [
        ("llama.expert_count", 8, "mixtral"),
        ("llama.expert_count", 0, "llama"),
        ("llama.attention.sliding_window", 20, "mistral"),
        ("llama.attention.sliding_window", 0, "llama"),
    ]:
        assert family_of(replace(llama, metadata={**llama.metadata, key: value})).name == expected


def test_planned_families_are_known_but_not_served() -> None:
    for family in PLANNED:
        assert known_family(family.name) is family
        assert family not in FAMILIES
        assert family.build is None
    found = known_family("qwen3moe")  # by what GGUF calls it
    assert found is not None
    assert found.name == "qwen3_moe"
    assert known_family("novel") is None
