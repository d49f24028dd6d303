#!/usr/bin/env bash
# llama.cpp as of llama-cpp-python 0.3.36: a DeepSeek V2 with groups picks other experts than its publisher's code does.
#
# DeepSeek V2 takes the groups whose best expert is best (group_limited_greedy); V3 those whose two best have the largest
# sum. llama.cpp computes the sum for both: the file says how many groups there are and how many are used, and nothing of
# how they are picked. V2 and V2 Chat have 8 groups, of which 3 are used; V2 Lite has one, and is not concerned.
#
# Seen, on a small model with random weights whose file is of llama.cpp's own converter: the likeliest next token is that
# of transformers in 0.83 of 200 positions; once transformers takes the sum of two, in 0.995.
# (torch's plain wheel brings CUDA on Linux; nothing here needs it. llama.cpp is compiled, which takes some minutes.)
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && cd "$folder"
bin/pip install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6 requests==2.34.2
bin/pip install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36
bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz --strip-components=2 --wildcards '*/vendor/llama.cpp/*.py'
bin/python -W ignore - 2>running.log <<'END' || { tail -n 5 running.log; exit 1; }
import sys

sys.path[:0] = ["llama.cpp", "llama.cpp/gguf-py"]
import numpy as np
import torch
from llama_cpp import llama_cpp
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

import convert_hf_to_gguf
from conversion.deepseek import DeepseekV2Model

GROUPS, USED = 4, 2
torch.manual_seed(0)
heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16}
heads |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
experts = {"n_routed_experts": 12, "num_experts_per_tok": 3, "n_shared_experts": 1, "moe_intermediate_size": 32}
experts |= {"n_group": GROUPS, "topk_group": USED, "topk_method": "group_limited_greedy", "first_k_dense_replace": 1}
experts |= {"norm_topk_prob": False, "routed_scaling_factor": 4.0, "scoring_func": "softmax"}
sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
model = DeepseekV2ForCausalLM(DeepseekV2Config(**sizes, **heads, **experts, initializer_range=0.15)).eval()
model.save_pretrained("model")


def set_vocab(self):
    self.gguf_writer.add_tokenizer_model("none")  # the weights alone


DeepseekV2Model.set_vocab = set_vocab
sys.argv = ["convert", "model", "--outfile", "model.gguf", "--outtype", "f32"]
convert_hf_to_gguf.main()
tokens = torch.randint(0, 128, (1, 200))


def torchs():
    with torch.no_grad():
        return model(tokens).logits[0].numpy()


def llama_cpps():
    loaded = llama_cpp.llama_model_load_from_file(b"model.gguf", llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(loaded, llama_cpp.llama_context_default_params())
    batch = llama_cpp.llama_batch_init(200, 0, 1)
    batch.n_tokens = 200
    for place, token in enumerate(tokens[0].tolist()):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert llama_cpp.llama_decode(context, batch) == 0
    return np.stack([np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (128,)) for i in range(200)])


def share(a, b):
    return float((a.argmax(-1) == b.argmax(-1)).mean()), float(abs(a - b).max())


def two_best(self, hidden_states):
    """What DeepSeek V3 does: a group is worth the sum of its two best."""
    scores = (hidden_states.float().view(-1, 64) @ self.weight.float().T).softmax(-1)
    groups = scores.view(len(scores), GROUPS, -1)
    used = groups.topk(2).values.sum(-1).topk(USED).indices
    kept = torch.zeros_like(groups).scatter(1, used[..., None].expand(-1, -1, groups.shape[-1]), 1.0)
    weights, picked = (groups * kept).flatten(1).topk(self.top_k)
    return scores, weights * self.routed_scaling_factor, picked


seen = llama_cpps()
found = {"a group's best": share(seen, torchs())}
type(model.model.layers[1].mlp.gate).forward = two_best
found["the sum of its two best"] = share(seen, torchs())
print("likeliest tokens that are equal, largest distance of logits:", found)
best, two = (equal for equal, _ in found.values())
assert best < 0.95 and two > 0.98, "llama.cpp behaves otherwise now"
END
