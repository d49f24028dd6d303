"""Write goldens/mtp/<model>.json: what heads of tiny models draft, by `transformers`, for tests without torch.

    PYTHONPATH=src:tests .venv-torch/bin/python tests/reference/make_mtp_goldens.py [MODEL…]

transformers computes the model, and the head's layer with its last norm and output as a model of one layer. What goes
into that is stated here, in torch: proj [norm(embedding of the next token), norm(last hidden state)].
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tiny_heads import HEADED, PROMPTS, with_head
from tiny_hybrid import HYBRIDS
from tiny_models import TinyModel, hf_config, weights, write_safetensors

GOLDENS = Path(__file__).parent / "goldens" / "mtp"
SOURCE = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager"
LENGTH = 5  # of a draft
MARGIN = 0.02  # between the likeliest token's logit and the next one's: a draft ends where it is less


def opened(folder: str, spec: TinyModel) -> Any:
    made = getattr(transformers, hf_config(spec)["architectures"][0])
    model, loaded = made.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not loaded["missing_keys"], loaded["missing_keys"]
    return model


def opened_pair(folder: Path, spec: TinyModel) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """→ (the model, the head's layer as a model, whose last norm is the head's, the head's tensors)"""
    layer = spec.config["num_hidden_layers"]
    whole = opened(str(folder), spec)
    config = {**hf_config(spec), "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
    config |= {"mlp_layer_types": ["sparse"]} if config["model_type"] == "glm4_moe_lite" else {}
    config |= {"layer_types": ["full_attention"]} if "layer_types" in config else {}
    state = {name: torch.from_numpy(np.array(values)) for name, values in weights(spec).items()}
    start = f"model.layers.{layer}."
    kept = {f"model.layers.0.{name.removeprefix(start)}": w for name, w in state.items() if name.startswith(start)}
    kept |= {name: state[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    kept["model.norm.weight"] = kept.pop("model.layers.0.shared_head.norm.weight")
    with tempfile.TemporaryDirectory() as inner:
        (Path(inner) / "config.json").write_text(json.dumps(config))
        save_file(kept, Path(inner) / "model.safetensors", metadata={"format": "pt"})
        added = 1 if spec.architecture in HYBRIDS else 0  # norms multiply by 1 + w
        own = {name.removeprefix(start): w + (added if "norm" in name else 0) for name, w in state.items()}
        return whole, opened(inner, spec), own


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def draft(model: Any, head: Any, own: dict[str, torch.Tensor], spec: TinyModel, prompt: list[int]) -> dict[str, Any]:
    """The model's next token, and what the head says comes after it."""
    eps, hidden_first = spec.config["rms_norm_eps"], spec.config["model_type"] == "mimo"
    tokens = torch.tensor([prompt])
    hidden = model.model(tokens).last_hidden_state  # after the final norm
    known = [*prompt, int(model.lm_head(hidden[0, -1]).argmax())]
    said: list[int] = []
    while len(said) < LENGTH:
        following = model.model.embed_tokens(torch.tensor([(known + said)[1:]]))
        both = [normed(following, own["enorm.weight"], eps), normed(hidden, own["hnorm.weight"], eps)]
        both = torch.cat(both[::-1] if hidden_first else both, -1)
        out = head.model(inputs_embeds=both @ own["eh_proj.weight"].T).last_hidden_state
        best = head.lm_head(out[0, -1]).topk(2)
        if best.values[0] - best.values[1] < MARGIN:
            break
        said.append(int(best.indices[0]))
        hidden = torch.cat([hidden, out[:, -1:]], 1)
    return {"tokens": known, "draft": said}


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or HEADED:
        spec = with_head(name)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            write_safetensors(Path(folder), spec)
            model, head, own = opened_pair(Path(folder), spec)
            prompts = [prompt[:n] for prompt in PROMPTS for n in range(5, len(prompt), 13)]
            drafts = [draft(model, head, own, spec, prompt) for prompt in prompts]
        (GOLDENS / f"{name}.json").write_text(json.dumps({"source": SOURCE, "drafts": drafts}) + "\n")


if __name__ == "__main__":
    main()
