"""Which type each tensor gets: llama.cpp's rules, fallbacks by shape, overrides."""

from __future__ import annotations

import pytest

from pagoda.errors import ConfigError
from pagoda.quantize.gguf.mixes import MIXES, TypeChoice, choose_types, parse_overrides

LAYERS = 32


def shapes(width: int = 4096, *, tied: bool = False, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (1000, width), "output_norm.weight": (width,)}
    if not tied:
        found["output.weight"] = (1000, width)
    for i in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
            found[f"blk.{i}.{part}.weight"] = (256, width)
        found[f"blk.{i}.ffn_down.weight"] = (width, 11008)
        found[f"blk.{i}.attn_norm.weight"] = (width,)
        found[f"blk.{i}.attn_q.bias"] = (256,)
    return found


def types(mix: str, found: dict[str, tuple[int, ...]] | None = None, **options: object) -> dict[str, TypeChoice]:
    found = found or shapes()
    return choose_types(found, dict.fromkeys(found, "F32"), MIXES[mix], **options)  # type: ignore[arg-type]


def layers_with(choices: dict[str, TypeChoice], part: str, type: str) -> list[int]:
    return [i for i in range(LAYERS) if choices[f"blk.{i}.{part}.weight"].type == type]


# As llama-quantize chooses for a model of 32 layers.
MORE_BITS = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@pytest.mark.parametrize(
    ("mix", "part", "type", "layers"),
    [
        ("q4_k_m", "attn_v", "Q6_K", MORE_BITS),
        ("q4_k_m", "ffn_down", "Q6_K", MORE_BITS),
        ("q4_k_m", "attn_q", "Q4_K", list(range(LAYERS))),
        ("q5_k_m", "ffn_down", "Q6_K", MORE_BITS),
        ("q4_k_s", "attn_v", "Q5_K", [0, 1, 2, 3]),
        ("q4_k_s", "ffn_down", "Q5_K", [0, 1, 2, 3]),
        ("q3_k_m", "attn_v", "Q5_K", [0, 1]),
        ("q3_k_m", "attn_v", "Q4_K", list(range(2, LAYERS))),
        ("q3_k_m", "ffn_down", "Q5_K", [0, 1]),
        ("q3_k_l", "attn_output", "Q5_K", list(range(LAYERS))),
        ("q3_k_s", "ffn_down", "Q3_K", list(range(LAYERS))),
        ("q2_k", "attn_v", "Q3_K", list(range(LAYERS))),
        ("q2_k", "ffn_gate", "Q2_K", list(range(LAYERS))),
        ("iq4_xs", "ffn_down", "Q5_K", [0, 1, 2, 3]),
        ("q4_0", "ffn_down", "Q4_0", list(range(LAYERS))),
    ],
)
def test_rules_by_layer(mix: str, part: str, type: str, layers: list[int]) -> None:
    assert layers_with(types(mix), part, type) == layers


def test_values_that_many_heads_share_get_more_bits() -> None:
    assert layers_with(types("q2_k", heads_per_kv=4), "attn_v", "Q4_K") == list(range(LAYERS))
    assert layers_with(types("iq4_nl", heads_per_kv=8), "attn_v", "Q5_K") == list(range(LAYERS))


def mixture(experts: int) -> dict[str, tuple[int, ...]]:
    found = {name: shape for name, shape in shapes().items() if "ffn" not in name}
    for i in range(LAYERS):
        found[f"blk.{i}.ffn_gate_inp.weight"] = (experts, 4096)
        for part in ("gate", "up", "down"):
            found[f"blk.{i}.ffn_{part}_exps.weight"] = (experts, 256, 4096)
    return found


# As llama-quantize of llama.cpp (in llama-cpp-python 0.3.36) chooses; it was run on small models with 6, 8 and fused.
@pytest.mark.parametrize(
    ("mix", "experts", "part", "type", "layers"),
    [
        ("q4_k_m", 8, "attn_v", "Q8_0", list(range(LAYERS))),
        ("q4_k_m", 8, "attn_k", "Q8_0", list(range(LAYERS))),
        ("q4_k_m", 8, "attn_output", "Q5_K", list(range(LAYERS))),
        ("q3_k_l", 8, "attn_output", "Q3_K", list(range(LAYERS))),
        ("q5_k_m", 8, "attn_output", "Q5_K", list(range(LAYERS))),
        ("q4_k_m", 8, "ffn_down_exps", "Q6_K", MORE_BITS),
        ("q4_k_m", 6, "attn_v", "Q6_K", MORE_BITS),
        ("q4_k_m", 6, "attn_k", "Q4_K", list(range(LAYERS))),
        ("q3_k_l", 6, "attn_output", "Q5_K", list(range(LAYERS))),
        ("q2_k", 6, "ffn_gate_exps", "Q2_K", list(range(LAYERS))),
        ("q2_k", 6, "ffn_gate_inp", "F32", list(range(LAYERS))),
    ],
)
def test_mixtures_of_experts(mix: str, experts: int, part: str, type: str, layers: list[int]) -> None:
    assert layers_with(types(mix, mixture(experts)), part, type) == layers


def test_queries_keys_and_values_in_one_matrix_count_as_values() -> None:
    found = {name.replace("attn_v.", "attn_qkv."): shape for name, shape in shapes().items() if "attn_k." not in name}
    assert layers_with(types("q4_k_m", found), "attn_qkv", "Q6_K") == MORE_BITS
    assert layers_with(types("q3_k_m", found), "attn_qkv", "Q5_K") == [0, 1]


def test_an_importance_matrix_changes_the_first_down_projections() -> None:
    assert layers_with(types("q4_0", has_imatrix=True), "ffn_down", "Q4_1") == [0, 1, 2, 3]
    assert layers_with(types("iq4_xs", has_imatrix=True), "ffn_down", "Q5_K") == []


@pytest.mark.parametrize("mix", ["q4_k_m", "q4_0", "iq4_xs", "q6_k"])
def test_the_output_matrix_gets_six_bits(mix: str) -> None:
    choices = types(mix)
    assert choices["output.weight"].type == "Q6_K"
    assert choices["token_embd.weight"].type == MIXES[mix].base
    assert types(mix, shapes(tied=True))["token_embd.weight"].type == "Q6_K"


def test_norms_and_biases_stay_as_they_are() -> None:
    choices = types("q4_k_m")
    assert choices["output_norm.weight"] == choices["blk.0.attn_q.bias"] == TypeChoice("F32")
    assert types("f16")["blk.0.attn_norm.weight"].type == "F32"


@pytest.mark.parametrize(
    ("mix", "fallback"),
    [
        ("q4_k_m", "Q5_0"),
        ("q5_k_s", "Q5_1"),
        ("q6_k", "Q8_0"),
        ("q3_k_s", "Q4_0"),
        ("q2_k", "Q4_0"),
        ("iq4_xs", "IQ4_NL"),
    ],
)
def test_rows_that_256_does_not_divide_fall_back(mix: str, fallback: str) -> None:
    choice = types(mix, shapes(576, tied=True))["blk.5.attn_q.weight"]
    assert choice == TypeChoice(fallback, wanted=MIXES[mix].base)


def test_rows_that_32_does_not_divide_become_f16() -> None:
    choices = types("q4_k_m", shapes(100))
    assert choices["blk.5.attn_q.weight"] == TypeChoice("F16", wanted="Q4_K")
    assert choices["output.weight"].type == "F16"


def test_overrides_win_in_order_and_fall_back_too() -> None:
    overrides = parse_overrides(["attn_v=Q8_0", r"blk\.[0-3]\.=q6_k", "embd=bf16"])
    choices = types("q4_k_m", overrides=overrides)
    assert choices["blk.0.attn_v.weight"].type == "Q8_0"
    assert choices["blk.0.attn_q.weight"].type == "Q6_K"
    assert choices["blk.4.attn_q.weight"].type == "Q4_K"
    assert choices["token_embd.weight"].type == "BF16"
    assert types("q4_k_m", shapes(576), overrides=overrides)["blk.0.attn_q.weight"] == TypeChoice("Q8_0", wanted="Q6_K")


def test_an_override_that_meets_nothing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'atn_v' matches no matrix of the model, such as blk\.0\.attn_k\.weight"):
        types("q4_k_m", overrides=parse_overrides(["attn_v=q8_0", "atn_v=q8_0"]))


def test_a_comma_may_stand_in_an_override() -> None:
    (pattern, type), second = parse_overrides([r"blk\.\d{1", r"2}\.=q8_0", "x=f32"])
    assert (pattern.pattern, type, second[1]) == (r"blk\.\d{1,2}\.", "Q8_0", "F32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_v", "REGEX=TYPE"),
        ("a(=q8_0", "regular expression"),
        ("a=q9", "written as 'q9'"),
        ("a=iq2_s", "written as 'iq2_s'"),
    ],
)
def test_wrong_overrides_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_overrides([text])
