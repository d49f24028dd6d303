"""Ceilings of the GPU, then Pagoda's CUDA backend beside them: decode and prefill of a random model, greedy steps.

    python bench/gpu.py --shape llama3-8b --types BF16 Q4_K --out bench/results/gpu
    python bench/gpu.py --shape tiny --device cpu           # tests this script's own paths, and nothing else

Every time is a median; each result stands beside what bytes or operations allow at the rate measured in the same run.
Writes JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pagoda.backends.base import AttentionSpec, RopeSpec
from pagoda.backends.cuda.backend import CudaBackend
from pagoda.backends.cuda.model import CudaModel
from pagoda.backends.cuda.options import CudaOptions
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.models.layers import Attention, Block, Decoder, FeedForward, Linear, Norm
from pagoda.types import BLOCK_SIZE, Batch, RawTensor


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


SHAPES = {
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128_256),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49_152),
    "tiny": Shape(2, 256, 512, 4, 2, 64, 512),
}
CASES = [("decode", 1, 1024), ("decode", 16, 1024), ("decode", 64, 1024), ("prefill", 1, 4096)]


@dataclass(frozen=True)
class Result:
    case: str
    type: str
    ms: float
    tokens_per_second: float
    floor_ms: float  # bytes over bandwidth, or operations over peak, the larger

    @property
    def share(self) -> float:
        return self.floor_ms / self.ms


def random_model(shape: Shape, type: str) -> Decoder:
    """Weights of random bits with sane scales."""
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> RawTensor:
        size = tensor_bytes(type, (rows, columns))
        if type in ("BF16", "F16"):
            values = torch.randn(rows * columns) * columns**-0.5
            data = values.to(torch.bfloat16 if type == "BF16" else torch.float16).view(torch.uint8).numpy()
        else:
            data = rng.integers(0, 256, size, dtype=np.uint8)
            scale = np.array([1e-4], np.float16).view(np.uint8)
            blocks = data.reshape(-1, BLOCK_TYPES[type].bytes)
            at = {"Q6_K": (208,), "Q4_K": (0, 2), "Q4_1": (0, 2)}.get(type, (0,))
            for place in at:
                blocks[:, place : place + 2] = scale
        return RawTensor(name, type, (rows, columns), data)

    def vector(name: str, size: int) -> RawTensor:
        return RawTensor(name, "F32", (size,), np.ones(size, np.float32).view(np.uint8))

    e, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rope = RopeSpec("neox", (5e5 ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)).astype(np.float32))
    spec = AttentionSpec(shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5)
    blocks = tuple(
        Block(
            Norm(vector(f"{i}.an", e), 1e-5),
            Attention(
                Linear(matrix(f"{i}.q", q, e)),
                Linear(matrix(f"{i}.k", kv, e)),
                Linear(matrix(f"{i}.v", kv, e)),
                Linear(matrix(f"{i}.o", e, q)),
                rope,
                spec,
            ),
            Norm(vector(f"{i}.fn", e), 1e-5),
            FeedForward(
                Linear(matrix(f"{i}.g", shape.ffn, e)),
                Linear(matrix(f"{i}.u", shape.ffn, e)),
                Linear(matrix(f"{i}.d", e, shape.ffn)),
                "silu",
            ),
        )
        for i in range(shape.layers)
    )
    embedding, output = matrix("embedding", shape.vocab, e), matrix("output", shape.vocab, e)
    return Decoder(embedding, blocks, Norm(vector("on", e), 1e-5), output, 8192)


def median_ms(run: Callable[[], object], device: str, rounds: int = 10) -> float:
    for _ in range(2):
        run()
    times = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ceilings(device: str) -> tuple[float, float]:
    """Bytes a second that a copy reads and writes, and operations a second of a large 16-bit product."""
    large = device == "cuda"
    source = torch.randn((1 << 28) if large else (1 << 20), device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / (1e-3 * median_ms(lambda: target.copy_(source), device))
    side = 8192 if large else 256
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    product = 2 * side**3 / (1e-3 * median_ms(lambda: a @ a, device))
    return copy, product


def step(kind: str, seqs: int, context: int) -> Batch:
    """`seqs` sequences at `context` tokens that decode one more, or one prompt of `context` tokens."""
    width = -(-context // BLOCK_SIZE)
    tables = np.arange(seqs * width, dtype=np.int32).reshape(seqs, width)
    count = 1 if kind == "decode" else context
    starts = np.arange(seqs + 1, dtype=np.int32) * np.int32(count)
    return Batch(
        tokens=np.arange(seqs * count, dtype=np.int32) % 256,
        positions=np.tile(np.arange(context - count, context, dtype=np.int32), seqs),
        seq_starts=starts,
        context_lens=np.full(seqs, context, np.int32),
        block_tables=(tables,),
        logit_rows=starts[1:] - 1,
    )


def floor_ms(shape: Shape, model: CudaModel, kind: str, seqs: int, context: int, rates: tuple[float, float]) -> float:
    count = seqs if kind == "decode" else context
    width = shape.heads * shape.head_dim
    weights = shape.layers * shape.hidden * (2 * width + 2 * shape.kv_heads * shape.head_dim + 3 * shape.ffn)
    scores = 2 * 2 * width * shape.layers * (seqs * context if kind == "decode" else context * context / 2)
    operations = 2 * weights * count + scores + 2 * seqs * shape.hidden * shape.vocab
    kv = seqs * context / BLOCK_SIZE * model.block_bytes(0)
    table = model.weight_bytes * shape.vocab * shape.hidden / (weights + 2 * shape.vocab * shape.hidden)
    return 1e3 * max((model.weight_bytes - table + kv) / rates[0], operations / rates[1])


def measure(shape: Shape, type: str, device: str, invariant: bool, rates: tuple[float, float]) -> list[Result]:
    cases = CASES if device == "cuda" else [("decode", 2, 32), ("prefill", 1, 32)]
    options = CudaOptions(device, "fast" if device == "cuda" else "eager", invariant, graphs=device == "cuda")
    backend = CudaBackend(options)
    model = backend.load(random_model(shape, type), max_batch_tokens=4096, max_batch_seqs=64, kv_type="f16")
    model.allocate_kv((max(seqs * -(-context // BLOCK_SIZE) for _, seqs, context in cases),))
    results = []
    for kind, seqs, context in cases:
        batch = step(kind, seqs, context)
        logits = model.forward(batch)
        assert np.isfinite(logits).all(), f"{kind} {seqs} x {context}: logits are not finite"
        ms = median_ms(lambda: model.forward(batch), device)  # noqa: B023
        tokens = seqs if kind == "decode" else context
        name = f"{kind} {seqs} x {context}" + (" invariant" if invariant else "")
        results.append(Result(name, type, ms, 1e3 * tokens / ms, floor_ms(shape, model, kind, seqs, context, rates)))
    model.close()
    return results


def report(device: str, rates: tuple[float, float], results: list[Result]) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU: a test of this script, not a measurement"
    lines = [
        f"{name}: copy {rates[0] / 1e9:,.0f} GB/s, product {rates[1] / 1e12:,.1f} TFLOP/s\n",
        "| case | weights | ms | tokens/s | floor ms | of the floor |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        rate = f"{r.tokens_per_second:,.0f}"
        lines.append(f"| {r.case} | {r.type} | {r.ms:.2f} | {rate} | {r.floor_ms:.2f} | {r.share:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--types", nargs="+", default=["BF16", "Q4_0", "Q4_K"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="where to write OUT.json and OUT.md")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu --shape tiny tests the script itself")
    rates = ceilings(args.device)
    shape = SHAPES[args.shape]
    results = [
        result
        for type in args.types
        for invariant in (False, True)
        for result in measure(shape, type, args.device, invariant, rates)
    ]
    text = report(args.device, rates, results)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(text)
        rows = [{**asdict(result), "share": result.share} for result in results]
        args.out.with_suffix(".json").write_text(
            json.dumps({"copy_bytes_s": rates[0], "product_flops": rates[1], "results": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
