"""Time, peak and resident memory of loading a large mixture of experts, Pagoda beside llama-server on the same file.

    PYTHONPATH=src:tests python bench/moe_memory.py --server PATH [--gigabytes 4] [--type Q4_K] [--keep FILE]

The file is a random Qwen3-MoE of 128 experts a layer. Each program loads it, answers a few tokens and is looked at in
/proc: VmHWM is the most that was resident, VmRSS what is at the end, RssAnon what of it no file backs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from pagoda.formats.blocks import tensor_bytes
from tiny_blocks import RANDOM_BLOCKS, encode, random_blocks
from tiny_models import TINY, gguf_metadata

HIDDEN, FFN, EXPERTS, HEADS, KV_HEADS, HEAD_DIM = 2048, 768, 128, 16, 4, 128
FIELDS = ("VmHWM", "VmRSS", "RssAnon")


def write(path: Path, gigabytes: float, kind: str) -> None:
    """One stack of random blocks stands for all of them: what a byte says changes neither time nor memory."""
    per_layer = 3 * tensor_bytes(kind, (EXPERTS, FFN, HIDDEN))
    layers = max(1, round(gigabytes * 1e9 / per_layer))
    spec = TINY["qwen3moe"].with_config(
        hidden_size=HIDDEN, intermediate_size=FFN, moe_intermediate_size=FFN, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, num_local_experts=EXPERTS,
        num_experts_per_tok=8, max_position_embeddings=4096,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, spec.architecture)
    for key, value in gguf_metadata(spec).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif key != "general.architecture":
            add: dict[type, Callable[[str, Any], None]] = {
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
                bool: writer.add_bool,
            }
            add[type(value)](key, value)
    vocab = spec.config["vocab_size"]
    rng = np.random.default_rng(0)
    floats = {"token_embd": (vocab, HIDDEN), "output": (vocab, HIDDEN), "output_norm": (HIDDEN,)}
    stacks = {"ffn_gate_exps": (FFN, HIDDEN), "ffn_up_exps": (FFN, HIDDEN), "ffn_down_exps": (HIDDEN, FFN)}
    made = {shape: np.stack([_blocks(kind, shape)] * EXPERTS) for shape in set(stacks.values())}
    for i in range(layers):
        block = f"blk.{i}."
        floats |= {f"{block}attn_q": (HEADS * HEAD_DIM, HIDDEN), f"{block}attn_output": (HIDDEN, HEADS * HEAD_DIM)}
        floats |= {f"{block}attn_{k}": (KV_HEADS * HEAD_DIM, HIDDEN) for k in "kv"}
        floats |= {f"{block}attn_{k}_norm": (HEAD_DIM,) for k in "qk"}
        floats |= {f"{block}{norm}": (HIDDEN,) for norm in ("attn_norm", "ffn_norm")}
        floats |= {f"{block}ffn_gate_inp": (EXPERTS, HIDDEN)}
    for name, shape in floats.items():
        values = (
            (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
            if len(shape) > 1
            else np.ones(shape, np.float32)
        )
        writer.add_tensor(f"{name}.weight", values)
    for i in range(layers):
        for name, shape in stacks.items():
            kind_id = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(f"blk.{i}.{name}.weight", made[shape], raw_dtype=kind_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(kind: str, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if kind in RANDOM_BLOCKS:
        return random_blocks(kind, shape, "stack", shape[1] ** -0.5)
    values = (np.random.default_rng(1).standard_normal(shape) * shape[1] ** -0.5).astype(np.float32)
    return np.ascontiguousarray(encode(values, kind)).view(np.uint8).reshape(shape[0], -1)


def memory(pid: int) -> dict[str, float]:
    """In MB; and seconds of CPU time, user's and system's, of all threads."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return {"CPU": cpu} | {field: int(lines[field].split()[0]) / 1e3 for field in FIELDS}


PAGODA = """
import json, os, sys, time
start = time.perf_counter()
from pagoda import LLM, SamplingParams
llm = LLM(sys.argv[1], max_context=512)
loaded = time.perf_counter() - start
llm.generate(["Hello"], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
print(json.dumps({"seconds": loaded}), flush=True)
sys.stdin.readline()
"""


def pagoda(path: Path) -> dict[str, float]:
    process = subprocess.Popen(
        [sys.executable, "-c", PAGODA, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    found: dict[str, float] = json.loads(process.stdout.readline()) | memory(process.pid)
    process.stdin.close()
    process.wait()
    return found


def llama_server(path: Path, server: str, port: int = 18099) -> dict[str, float]:
    start = time.perf_counter()
    command = [
        server,
        "-m",
        str(path),
        "-c",
        "512",
        "--port",
        str(port),
        "-t",
        str(os.cpu_count()),
        "--no-warmup",
        "-np",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _get(f"http://127.0.0.1:{port}/health"):
            time.sleep(0.1)
        loaded = time.perf_counter() - start
        body = json.dumps({"prompt": "Hello", "n_predict": 4, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).read()
        return {"seconds": loaded} | memory(process.pid)
    finally:
        process.terminate()
        process.wait()


def _get(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--type", default="Q4_K")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or Path(folder) / "moe.gguf"
        if not path.exists():
            write(path, args.gigabytes, args.type)
        print(f"{path.stat().st_size / 1e6:,.0f} MB of {args.type}")
        rows = {"pagoda": pagoda(path)}
        if args.server:
            rows["llama-server"] = llama_server(path, args.server)
        for name, row in rows.items():
            print(f"{name:14}", "  ".join(f"{key} {value:,.1f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
