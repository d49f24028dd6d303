"""Write goldens/adapters/<kind>.json: what peft saves for each kind of adapter, and the logits with it.

python -m venv .venv-peft && .venv-peft/bin/pip install torch==2.13.0 transformers peft==0.21.2 gguf
PYTHONPATH=src:tests .venv-peft/bin/python tests/reference/make_adapter_goldens.py [KIND…]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers

from tiny_adapters import ADAPTERS, GOLDENS, TinyAdapter, value, write_peft
from tiny_models import TINY, VOCAB, write_safetensors

SOURCE = f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, float32"
TOKENS = [(37 * i + 11) % VOCAB for i in range(40)]
ROWS = [0, 21, 39]
EVERY = 3  # of the vocabulary
# Where these differ from peft's defaults they would say something; else they are left out of the golden.
KEPT = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([TOKENS])).logits[0]


def base(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def golden(name: str, tiny: TinyAdapter) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as root:
        folder, saved = Path(root, "base"), Path(root, "adapter")
        write_safetensors(folder, TINY[tiny.base])
        plain = logits(base(folder))
        made = peft.get_peft_model(base(folder), peft.LoraConfig(task_type="CAUSAL_LM", **tiny.config))
        made.save_pretrained(saved)
        config = json.loads((saved / "adapter_config.json").read_text())
        import safetensors.torch

        shapes = {
            key: tuple(t.shape) for key, t in safetensors.torch.load_file(saved / "adapter_model.safetensors").items()
        }
        write_peft(saved, config, {key: value(key, shape) for key, shape in shapes.items()})
        adapted = logits(peft.PeftModel.from_pretrained(base(folder), saved))
    print(name, float((adapted - plain).abs().max()), *shapes, sep="\n    ")
    return {
        "source": SOURCE,
        "base": tiny.base,
        "config": config | {"base_model_name_or_path": tiny.base},
        "shapes": shapes,
        "tokens": TOKENS,
        "rows": ROWS,
        "every": EVERY,
        "logits": [[round(v, 5) for v in row] for row in adapted[ROWS, ::EVERY].tolist()],
    }


def main() -> None:
    for name in sys.argv[1:] or ADAPTERS:
        (GOLDENS / f"{name}.json").write_text(json.dumps(golden(name, ADAPTERS[name])) + "\n")


if __name__ == "__main__":
    main()
