"""What adapters cost: tokens/s of streams with adapters beside those of the model alone, and beside llama-server's.

    python bench/adapters.py [--rounds 5] [--rank 16] [--swaps 1000] [--llama-server PATH]

Paired: rounds of the model alone, of all streams with adapters (8 for 16 streams, each of rank 16 on all linears), and
of the model alone again, one after the other; the medians of their ratios are printed, and the ratios of the median and
of the shortest step, which other load on the machine moves less. With --llama-server,
both servers answer the same 16 streams over HTTP, with the adapters in rotation, and greedy answers are compared: of a
model in F32, where both compute what the weights say (pagoda convert smollm2-135m --dtype f32 -o f32.gguf; --model
f32.gguf --kv-type f32). On quantized weights llama.cpp rounds activations to 8 bits, and other tokens win.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import numpy as np

from pagoda import LLM, SamplingParams
from pagoda.adapters.adapter import Delta
from pagoda.adapters.gguf import write_gguf_adapter
from pagoda.adapters.peft import write_peft
from pagoda.adapters.place import Base, base_names
from pagoda.engine.engine import Engine
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import family_of, load_model
from pagoda.sources import resolve

MODEL = "smollm2-135m"
PROMPT = "The history of the steam engine begins with"
QUESTIONS = [
    "The capital of France is", "def add(a, b):", "Once upon a time", "Water boils at", "To bake bread, you need",
    "The three primary colours are", "import numpy as np\n", "Dear Sir or Madam,", "In 1969, people", "1, 2, 3, 4,",
    "The speed of light is", "SELECT name FROM", "She opened the door and", "A list of fruits:",
    "HTTP status 404 means",
    "The largest planet is", "class Stack:", "Photosynthesis is", "My favourite book is", "The opposite of hot is",
]  # fmt: skip


def deltas(shapes: dict[str, tuple[int, int]], seed: int, rank: int) -> dict[str, Delta]:
    rng = np.random.default_rng(seed)
    made = {}
    for name, (rows, columns) in shapes.items():
        a = rng.standard_normal((rank, columns), np.float32) * np.float32(columns**-0.5)
        made[name] = Delta(a, rng.standard_normal((rows, rank), np.float32) * np.float32(0.02), 2.0)
    return made


def write_adapters(folder: Path, count: int, rank: int) -> None:
    """PEFT folders 0, 1, … of all linears of the model, and the same as GGUF files."""
    with open_checkpoint(resolve(MODEL).path) as checkpoint:
        family = family_of(checkpoint)
        decoder = load_model(checkpoint)
        base = Base(decoder, family, True, family.gguf)
        names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
                 "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
                 "ffn_down": "mlp.down_proj"}  # fmt: skip
        shapes: dict[str, tuple[int, int]] = {}
        for layer, block in enumerate(decoder.blocks):
            for matrix in block.matrices:
                shapes[f"model.layers.{layer}.{names[matrix.name.split('.')[2]]}"] = (matrix.shape[0], matrix.shape[1])
        for i in range(count):
            made = deltas(shapes, i, rank)
            write_peft(folder / str(i), made, {})
            renamed = base_names(made, base, from_gguf=False, to_gguf=True)
            write_gguf_adapter(folder / f"{i}.gguf", family.gguf, renamed)


def decode(llm: LLM, streams: int, tokens: int, adapters: list[str | None]) -> list[float]:
    """Seconds of each step in which all of so many streams get a token."""
    core = llm.loaded.core
    assert isinstance(core, Engine)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    ids = llm.tokenize(PROMPT)
    for i in range(streams):
        core.enter(llm._request([*ids, i], params, None, adapters[i % len(adapters)], frozenset()))
    while sum(seq.num_outputs > 0 for seq in core.scheduler.running) < streams:
        core.step()
    seconds = []
    while core.has_work:
        start = time.perf_counter()
        if core.step().num_generation_tokens == streams:
            seconds.append(time.perf_counter() - start)
    assert seconds
    return seconds


def paired(folder: Path, streams: int, count: int, rounds: int, tokens: int) -> None:
    names: list[str | None] = [str(i) for i in range(count)]
    with LLM(
        MODEL, lora=tuple(f"{n}={folder / str(n)}" for n in names), speculation=("off",), prefix_caching=False
    ) as llm:
        decode(llm, streams, tokens, names)
        ratios: list[float] = []
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(rounds):
            base, adapted = decode(llm, streams, tokens, [None]), decode(llm, streams, tokens, names)
            base += decode(llm, streams, tokens, [None])
            ratios.append(statistics.mean(base) / statistics.mean(adapted))
            alone, beside = alone + base, beside + adapted
    median, least = (f(alone) / f(beside) for f in (statistics.median, min))
    rounds_said = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(
        f"{streams} streams, {count} adapters: {statistics.median(ratios):.3f} of the base's "
        f"{streams / statistics.median(alone):,.0f} tokens/s (rounds: {rounds_said}); "
        f"by the median step {median:.3f}, by the shortest {least:.3f}, of {len(beside)}"
    )


def swaps(folder: Path, count: int) -> None:
    """Load and unload an adapter so often while four streams run; memory must stay."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with LLM(MODEL, lora=(f"0={folder / '0'}",), speculation=("off",)) as llm:
        core, store = llm.loaded.core, llm.loaded.adapters
        params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        ids, before = llm.tokenize(PROMPT), 0
        for i in range(count):
            store.add("passing", folder / "1")
            for name in ("0", "passing", None, "passing"):
                core.enter(llm._request([*ids, i % 97], params, None, name, frozenset()))
            core.step()
            store.remove("passing")
            while core.has_work:
                assert not any(delta.error for delta in core.step().deltas)
            if i == count // 10:
                before = resident()
        print(f"{count} swaps under load: no error, {(resident() - before) / 1e6:+.1f} MB since the first tenth")


# Against llama-server


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def post(url: str, body: dict[str, Any]) -> Any:
    request = HttpRequest(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=300) as response:
        return json.load(response)


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def bodies(server: str, i: int, prompt: str, count: int, tokens: int) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    if server == "pagoda":
        return {**body, "model": str(i % count)}
    return {**body, "lora": [{"id": k, "scale": float(k == i % count)} for k in range(count)], "cache_prompt": False}


async def throughput(server: str, url: str, streams: int, count: int, tokens: int) -> float:
    async def one(i: int) -> int:
        body = bodies(server, i, f"{PROMPT} {i}", count, tokens)
        return int((await asyncio.to_thread(post, f"{url}/v1/completions", body))["usage"]["completion_tokens"])

    start = time.perf_counter()
    made = sum(await asyncio.gather(*[one(i) for i in range(streams)]))
    return made / (time.perf_counter() - start)


def against_llama(folder: Path, binary: str, model: str, kv_type: str, rounds: int, tokens: int) -> None:
    count = 8
    ports = {"pagoda": free_port(), "llama-server": free_port()}
    commands = {
        "pagoda": [
            sys.executable, "-m", "pagoda", "serve", model, "--kv-type", kv_type, "--port", str(ports["pagoda"]),
            *[part for i in range(count) for part in ("--lora", f"{i}={folder / str(i)}")],
        ],
        "llama-server": [
            binary, "-m", str(resolve(model).path), "--port", str(ports["llama-server"]), "-np", "16", "-c", "8192",
            "-t", "2", "-ctk", kv_type, "-ctv", kv_type, *(["-fa", "off"] if kv_type == "f32" else []),
            "--lora-init-without-apply", "--lora", ",".join(str(folder / f"{i}.gguf") for i in range(count)),
        ],
    }  # fmt: skip
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    running = [
        subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for command in commands.values()
    ]
    try:
        for name, url in urls.items():
            wait_for(f"{url}/{'ready' if name == 'pagoda' else 'health'}")
        equal = 0
        for i, question in enumerate(QUESTIONS):
            said = [
                post(f"{url}/v1/completions", bodies(name, i, question, count, 16))["choices"][0]["text"]
                for name, url in urls.items()
            ]
            equal += said[0] == said[1]
        print(f"greedy answers equal: {equal} of {len(QUESTIONS)} prompts, adapters in rotation")
        ratios = []
        for _ in range(rounds):
            found = {name: asyncio.run(throughput(name, url, 16, count, tokens)) for name, url in urls.items()}
            ratios.append(found["pagoda"] / found["llama-server"])
            print({name: round(value) for name, value in found.items()})
        print(
            f"16 streams, {count} adapters in rotation: {statistics.median(ratios):.2f} times llama-server's tokens/s"
        )
    finally:
        for process in running:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--llama-server", metavar="PATH")
    parser.add_argument("--swaps", type=int, default=0, metavar="N")
    parser.add_argument("--model", default=MODEL, help="For --llama-server: the default model, or that in F32.")
    parser.add_argument("--kv-type", choices=("f16", "f32"), default="f16", help="Of both servers.")
    parser.add_argument("--only-llama", action="store_true")
    parser.add_argument("--only-swaps", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_adapters(folder, 8, args.rank)
        if not args.only_llama and not args.only_swaps:
            paired(folder, 16, 8, args.rounds, args.tokens)
            paired(folder, 1, 1, args.rounds, args.tokens)
        if args.swaps:
            swaps(folder, args.swaps)
        if args.llama_server:
            against_llama(folder, args.llama_server, args.model, args.kv_type, min(args.rounds, 3), args.tokens)


if __name__ == "__main__":
    main()
