#!/usr/bin/env bash
# llama.cpp as of llama-cpp-python 0.3.36: a Bamba model is converted to GGUF as if its heads were turned whole.
#
# Bamba's rotary embedding turns the first half of each head, and pairs number i with i + a quarter of the head. llama.cpp
# pairs neighbours, so its converter reorders the rows of queries and keys; but it does so over the whole head, and pairs
# i with i + a half. The file states the right number of turned dimensions, and nothing warns of it.
#
# Seen, for random weights with transformers' own rotary embedding as the truth: attention scores computed from the
# converted rows are off by 0.38 of their length; with the turned rows alone reordered they are off by 1e-7.
# (torch's plain wheel brings CUDA on Linux; nothing here needs it. Nothing of llama.cpp is compiled.)
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && cd "$folder"
bin/pip install --quiet torch==2.13.0 transformers==4.57.6 numpy==2.4.6 requests==2.34.2
bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz --strip-components=2 --wildcards '*/vendor/llama.cpp/*.py'
bin/python -W ignore - 2>converting.log <<'END' || { tail -n 5 converting.log; exit 1; }
import sys

sys.path[:0] = ["llama.cpp", "llama.cpp/gguf-py"]
import torch
from transformers import BambaConfig, BambaForCausalLM
from transformers.models.bamba.modeling_bamba import BambaRotaryEmbedding, apply_rotary_pos_emb

import convert_hf_to_gguf
from conversion.granite import GraniteHybridModel
from gguf import GGUFReader

HEADS, SIZE, TURNED = 2, 32, 16
torch.manual_seed(0)
mamba = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16}
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "attn_layer_indices": [1]}
model = BambaForCausalLM(BambaConfig(**sizes, **heads, **mamba, attn_rotary_emb=TURNED))
model.save_pretrained("bamba")
GraniteHybridModel.set_vocab = lambda self: None  # the weights alone
sys.argv = ["convert", "bamba", "--outfile", "bamba.gguf", "--outtype", "f32"]
convert_hf_to_gguf.main()
file = GGUFReader("bamba.gguf")
assert file.fields["granitehybrid.rope.dimension_count"].contents() == TURNED, "the file states something else"
rows = {tensor.name: torch.tensor(tensor.data) for tensor in file.tensors}
x, attention = torch.randn(1, 9, 64), model.model.layers[1].self_attn


def turn_neighbours(heads):
    """As llama.cpp: numbers 2 i and 2 i + 1 of the first TURNED are a pair. [1, H, T, D]"""
    angles = torch.arange(9.0)[:, None] * 10000.0 ** -(torch.arange(0, TURNED, 2) / TURNED)
    pairs = torch.view_as_complex(heads[..., :TURNED].reshape(1, HEADS, 9, -1, 2).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    return torch.cat([turned, heads[..., TURNED:]], -1)


def scores(q, k, turn):
    q, k = turn(*((x @ rows.T).reshape(1, 9, HEADS, SIZE).transpose(1, 2) for rows in (q, k)))
    return q @ k.transpose(-1, -2)


def side_by_side(rows, width):
    """Of each head's first `width` rows, i and i + width / 2 become neighbours."""
    rows = rows.reshape(HEADS, SIZE, -1)
    pairs = rows[:, :width].reshape(HEADS, 2, width // 2, -1).transpose(1, 2).reshape(HEADS, width, -1)
    return torch.cat([pairs, rows[:, width:]], 1).reshape(HEADS * SIZE, -1)


with torch.no_grad():
    cos_sin = BambaRotaryEmbedding(model.config)(x, torch.arange(9)[None])
    q, k = attention.q_proj.weight, attention.k_proj.weight
    expected = scores(q, k, lambda q, k: apply_rotary_pos_emb(q, k, *cos_sin))
    both = lambda q, k: (turn_neighbours(q), turn_neighbours(k))
    converted = rows["blk.1.attn_q.weight"], rows["blk.1.attn_k.weight"]
    assert torch.equal(converted[0], side_by_side(q, SIZE)), "rows are in another order now"
    error = {
        "as converted": scores(*converted, both) - expected,
        "turned rows alone": scores(side_by_side(q, TURNED), side_by_side(k, TURNED), both) - expected,
    }
    share = {name: float(away.norm() / expected.norm()) for name, away in error.items()}
print("distance of attention scores from transformers', relative to their length:", share)
assert share["as converted"] > 0.1 and share["turned rows alone"] < 1e-5, "the converter behaves otherwise now"
END
