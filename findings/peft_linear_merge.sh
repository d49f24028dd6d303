#!/usr/bin/env bash
# peft 0.21.2: merging adapters with combination_type="linear" is not linear.
#
# `add_weighted_adapter` of two LoRA adapters with weights w and v could be expected to change the model by
# w * B1 A1 + v * B2 A2. "linear" adds up the factors instead, each times the root of its weight: the product of the
# sums has the terms B1 A2 and B2 A1 as well, which no training ever saw. "cat" has the expected sum, at twice the rank.
#
# Seen, for random factors: what "linear" makes is as far from the weighted sum of both changes as no change at all;
# "cat" is exact.
# (torch's plain wheel brings CUDA on Linux; nothing here needs it.)
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0
"$folder/bin/python" -W ignore - <<'END'
import torch
from peft import LoraConfig, get_peft_model


def config():
    return LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights=False)


torch.manual_seed(0)
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False)), config(), adapter_name="one")
model.add_adapter("two", config())
layer = model.base_model.model[0]
expected = 0.5 * layer.get_delta_weight("one") + 0.5 * layer.get_delta_weight("two")
error = {}
for kind in ("linear", "cat"):
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], kind, combination_type=kind)
    error[kind] = float((layer.get_delta_weight(kind) - expected).norm() / expected.norm())
print("distance to the weighted sum, relative to its length:", {kind: round(value, 3) for kind, value in error.items()})
assert error["linear"] > 0.5 and error["cat"] < 1e-6, "peft behaves otherwise now"
END
