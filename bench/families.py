"""Families beside transformers and llama-server, on tiny models with random weights: `tests/tiny_specs.py` says which.

    PYTHONPATH=src:tests HF_PYTHON bench/families.py expect FOLDER [MODEL…]     # needs transformers
    PYTHONPATH=src:tests python bench/families.py compare FOLDER [MODEL…]
    PYTHONPATH=src:tests python bench/families.py text FILE.gguf…               # next tokens of a text

`expect` writes a folder a model, what transformers goes on with greedily in float32 and its logits, and, where
LLAMA_CPP names a source tree of llama.cpp, GGUF files of its converter, or, where that refuses, of the tests' own.
`compare` runs Pagoda on the folders and, with LLAMA_CPP_BIN, beside llama-server on the files. Exits with 1 where a
cosine of logits is below 0.9999, a greedy token differs, or with float weights fewer than 99 % of the likeliest tokens
are llama-server's.

llama.cpp rounds what meets Q8_0 weights to bytes, Pagoda to 16 bits, and a model with random weights has near ties
everywhere. So for such files `compare` also computes in numpy with activations rounded as llama.cpp rounds them, and
with none rounded. It fails where fewer than 98 % of the former's tokens are llama-server's, or fewer than 99 % of the
latter's, or than llama-server gives, are Pagoda's. `text` does the latter at 500 places of a real text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tiny_models import TINY, VOCAB, hf_config, write_gguf, write_safetensors

PROMPTS = [[(a * i * i + 7 * i + b) % VOCAB for i in range(n)] for a, b, n in ((31, 11, 47), (3, 5, 33), (17, 90, 21))]
SPECS = {  # with what llama.cpp takes for granted
    **TINY,
    "gemma3n": TINY["gemma3n_deep"].with_config(hidden_size_per_layer_input=256, laurel_rank=64, keep_shared=True),
    "deepseek2": TINY["deepseek2"].with_config(  # with another number of layers it wants queries of low rank
        num_hidden_layers=26, first_k_dense_replace=23
    ),
    "cohere_plus": TINY["cohere_plus"].with_config(num_hidden_layers=64),
}
CONTINUED = 64
TYPES = ("f32", "q8_0")
CONVERT = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion import base
from conversion.base import TextModel
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
import convert_hf_to_gguf
find = convert_hf_to_gguf.get_model_class
def with_bytes(*args, **options):
    found = find(*args, **options)
    found.set_vocab = TextModel._set_vocab_gpt2
    return found
convert_hf_to_gguf.get_model_class = with_bytes
sys.argv = [sys.argv[0], sys.argv[2], "--outfile", sys.argv[3], "--outtype", sys.argv[4]]
convert_hf_to_gguf.main()
"""


# With transformers


def expect(root: Path, names: list[str]) -> None:
    import torch
    import transformers

    for name in names:
        if (root / f"{name}.{TYPES[-1]}.gguf").exists():
            continue
        folder = write_safetensors(root / name, SPECS[name])
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        model = getattr(transformers, hf_config(SPECS[name])["architectures"][0]).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        runs = []
        for prompt in PROMPTS:
            ids = list(prompt)
            for _ in range(CONTINUED):
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0]  # no cache, no window of its own
                ids.append(int(logits[-1].argmax()))
            runs.append({"prompt": prompt, "continued": ids[len(prompt) :], "logits": logits.tolist()})
        (root / f"{name}.json").write_text(json.dumps(runs))
        print(name, "expected")
        if "LLAMA_CPP" in os.environ:
            convert(folder, root, name)


def convert(folder: Path, root: Path, name: str) -> None:
    for type in TYPES:
        command = [
            sys.executable,
            "-c",
            CONVERT,
            os.environ["LLAMA_CPP"],
            str(folder),
            str(root / f"{name}.{type}.gguf"),
        ]
        made = subprocess.run([*command, type], capture_output=True, text=True)
        if made.returncode:
            write_gguf(root / f"{name}.{type}.gguf", SPECS[name], type=type.upper())
        said = made.stderr.strip().splitlines()[-1:]
        print(name, type, "converted" if made.returncode == 0 else f"written by the tests' own mapping: {said}")


def against_transformers(root: Path, name: str) -> tuple[float, int, int]:
    """→ (least cosine of a row of logits, greedy tokens that are equal, of how many)"""
    from families_llama import Run

    run, least, equal, total = Run(root / name), 1.0, 0, 0
    for expected in json.loads((root / f"{name}.json").read_text()):
        ids = expected["prompt"] + expected["continued"]
        logits, theirs = run.logits(ids[:-1], 7, 30), np.array(expected["logits"])
        cosines = (logits * theirs).sum(-1) / np.linalg.norm(logits, axis=-1) / np.linalg.norm(theirs, axis=-1)
        least = min(least, float(cosines.min()))
        greedy = logits[len(expected["prompt"]) - 1 :].argmax(-1).tolist()
        equal += sum(a == b for a, b in zip(greedy, expected["continued"], strict=True))
        total += len(greedy)
    return least, equal, total


def compare(root: Path, names: list[str]) -> bool:
    from families_llama import against_llama

    fine = True
    for name in names:
        line: list[str] = []
        if (root / f"{name}.json").exists():
            cosine, equal, total = against_transformers(root, name)
            fine &= cosine >= 0.9999 and equal == total
            line.append(f"transformers: cosine {cosine:.7f}, greedy {equal}/{total}")
        for type in TYPES if "LLAMA_CPP_BIN" in os.environ else ():
            path = root / f"{name}.{type}.gguf"
            if path.exists():
                try:
                    said, right = against_llama(path, type)
                except Exception as error:
                    said, right = f"{type}: {error}", False
                fine &= right
                line.append(said)
        print(f"{name}: " + "; ".join(line), flush=True)
    return fine


def text_agrees(path: Path) -> bool:
    from families_llama import along_text

    said, right = along_text(path)
    print(said, flush=True)
    return right


def main(argv: list[str]) -> int:
    command, root, *named = argv
    if command == "text":
        agree = [text_agrees(Path(path)) for path in (root, *named)]
        return 0 if all(agree) else 1
    names: list[Any] = named or list(SPECS)
    Path(root).mkdir(parents=True, exist_ok=True)
    if command == "expect":
        expect(Path(root), names)
        return 0
    return 0 if compare(Path(root), names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
