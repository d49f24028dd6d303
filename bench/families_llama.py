"""Pagoda beside llama-server, token by token: what `families.py` compares on files, and why files in Q8_0 differ.

llama.cpp rounds activations that meet Q8_0 weights to bytes with a scale for 32; Pagoda's are of 16 bits.
`RoundedBackend` is the reference backend with activations rounded as llama.cpp rounds them.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from families import PROMPTS
from paged_run import PagedRun
from pagoda.backends.base import Backend, ForwardModel
from pagoda.backends.cpu import CpuBackend
from pagoda.backends.reference import ReferenceBackend, ReferenceModel
from pagoda.backends.reference_ops import ReferenceOps
from pagoda.backends.specs import KVType
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model
from pagoda.text.tokenizer import load_tokenizer
from pagoda.types import FloatArray, RawTensor
from texts import code

COMPARED = 170  # tokens after each prompt
PLACES = 500  # of a text
LEAST_ROUNDED = 0.98  # Gemma's activation is a table of 16-bit values in llama.cpp
EOS = 257

Tokens = npt.NDArray[np.int64]


class Run:
    """A model on the CPU backend, or on another."""

    def __init__(self, path: Path, backend: Backend | None = None) -> None:
        self._checkpoint = open_checkpoint(path)
        model = load_model(self._checkpoint)
        backend = backend or CpuBackend(threads=1)
        loaded = backend.load(model, max_batch_tokens=256, max_batch_seqs=256, kv_type="f32")
        self._run = PagedRun(model, loaded)
        self._count = 0

    def logits(self, tokens: list[int], *chunks: int) -> FloatArray:
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


class RoundedOps(ReferenceOps):
    """Next to Q8_0 weights: activations in bytes with a 16-bit scale for 32, as by llama.cpp's quantize_row_q8_0."""

    def linear(self, x: FloatArray, weight: RawTensor, bias: RawTensor | None = None) -> FloatArray:
        return super().linear(rounded(x) if weight.type == "Q8_0" else x, weight, bias)

    def logits(self, x: FloatArray, weight: RawTensor, scale: float = 1.0, softcap: float | None = None) -> FloatArray:
        return super().logits(rounded(x) if weight.type == "Q8_0" else x, weight, scale, softcap)


def rounded(x: FloatArray) -> FloatArray:
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    codes = np.rint(blocks * np.where(largest > 0, 127 / np.maximum(largest, 1e-30), 0))
    scales = (largest / np.float32(127)).astype(np.float16).astype(np.float32)
    return np.asarray((codes.astype(np.float32) * scales).reshape(x.shape), np.float32)


class RoundedModel(ReferenceModel):
    ops = RoundedOps


class RoundedBackend(ReferenceBackend):
    """What llama.cpp computes with Q8_0 weights."""

    def load(self, model: ForwardModel, *, max_batch_tokens: int, max_batch_seqs: int, kv_type: KVType) -> RoundedModel:
        return RoundedModel(model, max_batch_seqs, batch_invariant=False)


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

    def continued(self, prompt: list[int], count: int, *, keep: bool = False) -> tuple[list[int], list[dict[str, Any]]]:
        """→ what it goes on with greedily, and what it states of tokens: not of those that are parts of characters

        keep: the prompt's keys and values, for one that goes on from it.
        """
        body = {"prompt": prompt, "n_predict": count, "top_k": 1, "samplers": ["top_k"]}
        body |= {"n_probs": 1, "return_tokens": True, "cache_prompt": keep, "seed": 1, "ignore_eos": not keep}
        request = urllib.request.Request(f"{self.url}/completion", json.dumps(body).encode())
        answer = json.load(urllib.request.urlopen(request, timeout=120))
        return answer["tokens"], answer.get("completion_probabilities", [])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def apart(tokens: list[int], ours: FloatArray, stated: list[dict[str, Any]]) -> float:
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


@dataclass(frozen=True)
class Answer:
    """What llama-server went on with after a prompt, and what it stated of it."""

    prompt: list[int]
    tokens: list[int]
    stated: list[dict[str, Any]]


def answers_of_llama(path: Path) -> list[Answer]:
    server = Server(path)
    try:
        return [Answer(prompt, *server.continued(prompt, COMPARED)) for prompt in PROMPTS]
    finally:
        server.stop()


def likeliest(run: Run, answers: list[Answer]) -> tuple[Tokens, float]:
    """→ (the likeliest token at each place of the answers, the largest difference of a log-probability stated)"""
    found, most = [], 0.0
    for answer in answers:
        tokens = answer.tokens
        rows = run.logits((answer.prompt + tokens)[:-1], 7, 30)[len(answer.prompt) - 1 :]
        top = rows.max(-1, keepdims=True)
        logprobs = rows - top - np.log(np.exp(rows - top).sum(-1, keepdims=True))
        most = max(most, apart(tokens, logprobs[np.arange(len(tokens)), tokens], answer.stated))
        logprobs[:, EOS] = -np.inf  # which it was told to ignore
        found.append(logprobs.argmax(-1))
    return np.concatenate(found), most


def against_llama(path: Path, type: str) -> tuple[str, bool]:
    """→ (what to print, whether it is as it should be)"""
    answers = answers_of_llama(path)
    theirs = np.concatenate([answer.tokens for answer in answers])
    ours, most = likeliest(Run(path), answers)
    share = float((ours == theirs).mean())
    line = f"llama-server {type}: top-1 {share:.4f} of {len(theirs)}, log-probabilities within {most:.1e}"
    if type != "q8_0":
        return line, share >= 0.99
    as_theirs, _ = likeliest(Run(path, RoundedBackend()), answers)
    exact, _ = likeliest(Run(path, ReferenceBackend(batch_invariant=False)), answers)
    rounded_share = float((as_theirs == theirs).mean())
    line, fine = stated_beside_exact(f"{line}; rounded as there {rounded_share:.4f}; equal", ours, theirs, exact)
    return line, fine and rounded_share >= LEAST_ROUNDED


def along_text(path: Path) -> tuple[str, bool]:
    """The next token at each place of a real text. → (what to print, whether it is as it should be)"""
    with open_checkpoint(path) as checkpoint:
        ids = load_tokenizer(checkpoint).encode(code()[: 16 * PLACES])[:PLACES]
    backends = (CpuBackend(threads=1), ReferenceBackend(batch_invariant=False))
    ours, exact = (Run(path, backend).logits(ids, 200, 200).argmax(-1) for backend in backends)
    server = Server(path)
    try:
        theirs = np.array([server.continued(ids[:n], 1, keep=True)[0][0] for n in range(1, len(ids) + 1)])
    finally:
        server.stop()
    return stated_beside_exact(f"{path.name}: top-1 of {len(ids)} places", ours, theirs, exact)


def stated_beside_exact(what: str, ours: Tokens, theirs: Tokens, exact: Tokens) -> tuple[str, bool]:
    """Pagoda is to give the tokens of unrounded activations, and no fewer of them than llama-server."""
    equal, ours_exact, theirs_exact = ((a == b).mean() for a, b in ((ours, theirs), (ours, exact), (theirs, exact)))
    line = f"{what} {equal:.4f}; of those unrounded, Pagoda {ours_exact:.4f} and llama-server {theirs_exact:.4f}"
    return line, bool(ours_exact >= max(0.99, theirs_exact))
