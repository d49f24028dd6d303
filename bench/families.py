"""Families beside transformers and llama-server, on tiny models with random weights: `tests/tiny_specs.py` says which.

    PYTHONPATH=src:tests HF_PYTHON bench/families.py expect FOLDER [MODEL…]     # needs transformers
    PYTHONPATH=src:tests python bench/families.py compare FOLDER [MODEL…]

`expect` writes a folder a model, what transformers goes on with greedily in float32 and its logits, and, where
LLAMA_CPP names a source tree of llama.cpp, GGUF files of its converter, or, where that refuses, of the tests' own.
`compare` runs Pagoda on the folders and, with LLAMA_CPP_BIN, beside llama-server on the files. Exits with 1 where a
cosine of logits is below 0.9999, a greedy token differs, or with float weights fewer than 99 % of the likeliest tokens
are llama-server's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from tiny_models import TINY, VOCAB, write_gguf, write_safetensors

PROMPTS = [[(a * i * i + 7 * i + b) % VOCAB for i in range(n)] for a, b, n in ((31, 11, 47), (3, 5, 33), (17, 90, 21))]
CONTINUED = 64
COMPARED = 170  # tokens after each prompt beside llama-server
TYPES = ("f32", "q8_0")
EOS = 257
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
        folder = write_safetensors(root / name, TINY[name])
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        model = transformers.AutoModelForCausalLM.from_pretrained(
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
            write_gguf(root / f"{name}.{type}.gguf", TINY[name], type=type.upper())
        said = made.stderr.strip().splitlines()[-1:]
        print(name, type, "converted" if made.returncode == 0 else f"written by the tests' own mapping: {said}")


# With Pagoda


class Run:
    """A model on the CPU backend."""

    def __init__(self, path: Path) -> None:
        from paged_run import PagedRun
        from pagoda.backends.cpu import CpuBackend
        from pagoda.formats.checkpoint import open_checkpoint
        from pagoda.models.registry import load_model

        self._checkpoint = open_checkpoint(path)
        model = load_model(self._checkpoint)
        loaded = CpuBackend(threads=1).load(model, max_batch_tokens=256, max_batch_seqs=256, kv_type="f32")
        self._run = PagedRun(model, loaded)
        self._count = 0

    def logits(self, tokens: list[int], *chunks: int) -> np.ndarray:
        """Of all tokens of a new sequence, in steps of so many and then the rest."""
        name, at, rows = f"s{self._count}", 0, []
        self._count += 1
        for size in (*chunks, len(tokens)):
            part = tokens[at : at + size]
            if part:
                rows.append(self._run.step({name: part})[name])
            at += size
        tables = zip(self._run.free, self._run.tables.pop(name), strict=True)
        self._run.free = [[*free, *(block for block in table if block >= 0)] for free, table in tables]
        return np.concatenate(rows)


def against_transformers(root: Path, name: str) -> tuple[float, int, int]:
    """→ (least cosine of a row of logits, greedy tokens that are equal, of how many)"""
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


# With llama-server


class Server:
    def __init__(self, path: Path, port: int = 18991) -> None:
        binary = Path(os.environ["LLAMA_CPP_BIN"]) / "llama-server"
        options = "-c 1024 -t 1 -np 1 -fa off -ctk f32 -ctv f32 --no-warmup --no-webui".split()  # noqa: SIM905
        command = [str(binary), "-m", str(path), "--port", str(port), *options]
        self.log = path.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text(errors="replace")[-1500:])
            try:
                if urllib.request.urlopen(f"{self.url}/health", timeout=1).status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("llama-server does not get ready")

    def continued(self, prompt: list[int], count: int) -> tuple[list[int], list[dict[str, Any]]]:
        """→ what it goes on with greedily, and what it states of tokens: not of those that are parts of characters"""
        body = {"prompt": prompt, "n_predict": count, "top_k": 1, "samplers": ["top_k"]}
        body |= {"n_probs": 1, "return_tokens": True, "cache_prompt": False, "seed": 1, "ignore_eos": True}
        request = urllib.request.Request(f"{self.url}/completion", json.dumps(body).encode())
        answer = json.load(urllib.request.urlopen(request, timeout=120))
        return answer["tokens"], answer.get("completion_probabilities", [])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def apart(tokens: list[int], ours: np.ndarray, stated: list[dict[str, Any]]) -> float:
    """The largest difference of log-probabilities, `stated` being of some of the tokens: of those that fit best."""
    least = np.full((len(tokens) + 1, len(stated) + 1), np.inf)
    least[:, 0] = 0
    for i, token in enumerate(tokens):
        for j, one in enumerate(stated):
            least[i + 1, j + 1] = least[i, j + 1]
            if one["id"] == token:
                difference = max(float(least[i, j]), abs(float(ours[i]) - one["logprob"]))
                least[i + 1, j + 1] = min(least[i, j + 1], difference)
    return float(least[-1, -1])


def against_llama(path: Path) -> tuple[float, int, float]:
    """→ (share of likeliest tokens that are llama-server's, positions, largest difference of a log-probability)"""
    run, server = Run(path), Server(path)
    equal = total = 0
    most = 0.0
    try:
        for prompt in PROMPTS:
            tokens, stated = server.continued(prompt, COMPARED)
            rows = run.logits((prompt + tokens)[:-1], 7, 30)[len(prompt) - 1 :]
            top = rows.max(-1, keepdims=True)
            logprobs = rows - top - np.log(np.exp(rows - top).sum(-1, keepdims=True))
            most = max(most, apart(tokens, logprobs[np.arange(len(tokens)), tokens], stated))
            logprobs[:, EOS] = -np.inf  # which it was told to ignore
            equal += int((logprobs.argmax(-1) == tokens).sum())
            total += len(tokens)
    finally:
        server.stop()
    return equal / total, total, most


def compare(root: Path, names: list[str]) -> bool:
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
                    share, count, most = against_llama(path)
                except Exception as error:
                    line.append(f"{type}: {error}")
                    fine = False
                    continue
                fine &= share >= 0.99 or type != "f32"  # llama.cpp rounds what meets quantized weights to bytes
                line.append(f"llama-server {type}: top-1 {share:.4f} of {count}, log-probabilities within {most:.1e}")
        print(f"{name}: " + "; ".join(line), flush=True)
    return fine


def main(argv: list[str]) -> int:
    command, root, *named = argv
    names: list[Any] = named or list(TINY)
    Path(root).mkdir(parents=True, exist_ok=True)
    if command == "expect":
        expect(Path(root), names)
        return 0
    return 0 if compare(Path(root), names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
