"""Write goldens/<model>.json: logits of `transformers` for the tiny models, which CI compares with without torch.

    python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 transformers accelerate gguf
    PYTHONPATH=src:tests .venv-torch/bin/python tests/reference/make_goldens.py [MODEL…] [DEFAULT_MODEL.gguf]

Of the named tiny models, or of all. With the default model's file, also goldens/default_model.json: what it says,
greedily, in float32.

The models' weights come from integer arithmetic (`tiny_blocks.noise`), so a JSON of a few hundred numbers is all that
has to be kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from tiny_models import TINY, VOCAB, TinyModel, hf_config, write_safetensors

GOLDENS = Path(__file__).parent / "goldens"
SOURCE = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager"
TOKENS = [(37 * i + 11) % VOCAB for i in range(100)]
ROWS = [0, 21, 50, 99]  # positions: alone, just past a window of 20, further, last
EVERY = 3  # of the vocabulary


def logits(spec: TinyModel) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder), spec)
        model, loaded = getattr(transformers, hf_config(spec)["architectures"][0]).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    lacking = [name for name in loaded["missing_keys"] if ".visual." not in name]
    assert not lacking, lacking
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]  # [T, V]


PROMPTS = [
    "The capital of France is",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
]
NUM_CONTINUED = 24


def default_model(path: Path) -> dict[str, object]:
    """Greedy continuations by transformers of the dequantized file, with the log-probability of each token."""
    file = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **file,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    return {"source": SOURCE, "prompts": [continued(model, tokenizer.encode(prompt)) for prompt in PROMPTS]}


def continued(model: transformers.PreTrainedModel, prompt: list[int]) -> dict[str, list[int] | list[float]]:
    ids, logprobs, cache = list(prompt), [], transformers.DynamicCache()
    for _ in range(NUM_CONTINUED):
        with torch.no_grad():
            new = torch.tensor([ids[cache.get_seq_length() :]])
            scores = torch.log_softmax(model(new, past_key_values=cache).logits[0, -1], -1)
        ids.append(int(scores.argmax()))
        logprobs.append(round(float(scores.max()), 4))
    return {"prompt": prompt, "continuation": ids[len(prompt) :], "logprobs": logprobs}


def main() -> None:
    named = [name for name in sys.argv[1:] if name in TINY]
    for path in sys.argv[1:]:
        if path not in named:
            (GOLDENS / "default_model.json").write_text(json.dumps(default_model(Path(path))) + "\n")
    for name in named or TINY:
        rows = logits(TINY[name])[ROWS, ::EVERY].tolist()
        golden = {
            "source": SOURCE,
            "tokens": TOKENS,
            "rows": ROWS,
            "every": EVERY,
            "logits": [[round(value, 5) for value in row] for row in rows],
        }
        (GOLDENS / f"{name}.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
