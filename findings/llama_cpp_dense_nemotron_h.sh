#!/usr/bin/env bash
# llama.cpp as of llama-cpp-python 0.3.36, transformers 5.24.0: a dense Nemotron-H becomes a mixture without experts.
#
# transformers writes num_experts_per_tok and n_routed_experts into the config.json of every Nemotron-H, also of one that
# has feed-forward layers and no expert. llama.cpp's converter takes the first for the sign of a mixture, and looks for
# feed-forward layers among those called "moe" alone. It succeeds: no tensor is missing, but what the file states of the
# model is wrong. A folder as publishers write it, with hybrid_override_pattern and without such keys, is read rightly.
#
# Seen: a model of layers M-*- with 96 feed-forward units is written as nemotron_h_moe with 8 experts and 0 units in
# every layer; with the config.json in publishers' spelling as nemotron_h with 0, 96, 0, 96 units and no experts.
# (The converter's own requirements ask for transformers 4.57.6, which knows no Nemotron-H; the converter reads the
# config.json by itself then. torch's plain wheel brings CUDA on Linux; nothing here needs it, and nothing is compiled.)
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && cd "$folder"
bin/pip install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6 requests==2.34.2
bin/python -W ignore - <<'MODEL'
from transformers import NemotronHConfig, NemotronHForCausalLM

layers = ["linear_attention", "mlp", "full_attention", "mlp"]
mamba = {"mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 1, "ssm_state_size": 16}
heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96}
NemotronHForCausalLM(NemotronHConfig(layers_block_type=layers, **sizes, **mamba, **heads)).save_pretrained("model")
MODEL
bin/pip install --quiet transformers==4.57.6
bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz --strip-components=2 --wildcards '*/vendor/llama.cpp/*.py'
bin/python -W ignore - 2>converting.log <<'END' || { tail -n 5 converting.log; exit 1; }
import json
import sys
from pathlib import Path

sys.path[:0] = ["llama.cpp", "llama.cpp/gguf-py"]
import convert_hf_to_gguf
from conversion.nemotron import NemotronHModel
from gguf import GGUFReader

NemotronHModel.set_vocab = lambda self: None  # the weights alone


def converted():
    """What the file states: architecture, feed-forward units of each layer, experts; and whether it has a router."""
    sys.argv = ["convert", "model", "--outfile", "model.gguf", "--outtype", "f32"]
    convert_hf_to_gguf.main()
    file = GGUFReader("model.gguf")
    name = file.fields["general.architecture"].contents()
    stated = [file.fields.get(f"{name}.{key}") for key in ("feed_forward_length", "expert_count")]
    router = any("ffn_gate_inp" in tensor.name for tensor in file.tensors)
    return (name, *(field.contents() if field else None for field in stated), router)


of_transformers, path = converted(), Path("model/config.json")
config = json.loads(path.read_text())
del config["num_experts_per_tok"], config["n_routed_experts"], config["layers_block_type"]
path.write_text(json.dumps(config | {"hybrid_override_pattern": "M-*-", "num_hidden_layers": 4}))
of_publisher = converted()
print("as transformers saves it:", of_transformers)
print("as publishers do:", of_publisher)
assert of_publisher == ("nemotron_h", [0, 96, 0, 96], None, False), "something else is wrong"
assert of_transformers == ("nemotron_h_moe", [0, 0, 0, 0], 8, False), "the converter behaves otherwise now"
END
