#!/usr/bin/env bash
# nvidia-modelopt 0.47.0 and compressed-tensors 0.20.1: the second scale of NVFP4 is the inverse of the other's.
#
# Both store a weight in NVFP4 as the same packed 4-bit codes with the same FP8 scale for each 16 of them. The scale of
# the whole tensor is what numbers are multiplied with in ModelOpt's files (weight_scale_2, largest / (6 * 448)), and
# what they are divided by in compressed-tensors' (weight_global_scale, (6 * 448) / largest). Each is one positive
# float32, so nothing tells that a file was renamed and not converted.
#
# Seen: codes and scales of ModelOpt give its numbers in compressed-tensors with the inverse of its second scale, and
# with that scale as it is numbers a billion times as large.
# (torch's plain wheel brings CUDA on Linux; nothing here needs it. modelopt 0.47.0 imports requests, but names it not.)
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 nvidia-modelopt==0.47.0 compressed-tensors==0.20.1 requests==2.34.2
"$folder/bin/python" -W ignore - <<'END'
import torch
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from modelopt.torch.quantization.qtensor import NVFP4QTensor

torch.manual_seed(0)
quantized, scale, second = NVFP4QTensor.quantize(0.02 * torch.randn(32, 64), 16)
expected = quantized.dequantize(dtype=torch.float32, scale=scale, double_scale=second, block_sizes={-1: 16})
scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])


def ratio(global_scale):
    """The largest number that compressed-tensors makes of it, over ModelOpt's."""
    stored = {"weight_packed": quantized._quantized_data, "weight_scale": scale, "weight_global_scale": global_scale}
    made = NVFP4PackedCompressor.decompress(stored, scheme)["weight"].float()
    return float(made.abs().max() / expected.abs().max())


as_it_is, inverted = ratio(second.reshape(1)), ratio(1 / second.reshape(1))
print(f"ModelOpt's second scale {float(second):.3g}; as it is x {as_it_is:.3g}, inverted x {inverted:.6f}")
assert abs(inverted - 1) < 1e-4 and as_it_is > 1e8, "one of the two behaves otherwise now"
END
