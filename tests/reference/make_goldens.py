"""Write goldens/<model>.json: logits of `transformers` for the tiny models, which CI compares with without torch.

    python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 transformers gguf
    PYTHONPATH=src:tests .venv-torch/bin/python tests/reference/make_goldens.py

The models' weights come from integer arithmetic (`tiny_models.noise`), so a JSON of a few hundred numbers is all that
has to be kept.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import transformers

from tiny_models import TINY, VOCAB, TinyModel, write_safetensors

GOLDENS = Path(__file__).parent / "goldens"
TOKENS = [(37 * i + 11) % VOCAB for i in range(100)]
ROWS = [0, 21, 50, 99]  # positions: alone, just past a window of 20, further, last
EVERY = 3  # of the vocabulary


def logits(spec: TinyModel) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder), spec)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]  # [T, V]


def main() -> None:
    for name, spec in TINY.items():
        rows = logits(spec)[ROWS, ::EVERY].tolist()
        golden = {
            "source": f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager",
            "tokens": TOKENS,
            "rows": ROWS,
            "every": EVERY,
            "logits": [[round(value, 5) for value in row] for row in rows],
        }
        (GOLDENS / f"{name}.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
