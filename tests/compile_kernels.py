"""Compiles every Triton kernel for GPUs that this machine need not have, as the launchers would launch it.

    python tests/compile_kernels.py 80 90 Q4_K      # compute capabilities, and what the names must match; a line a
                                                    # kernel: registers, stack, shared memory

Launchers run on tensors without memory (torch's meta device) with shapes of Llama 3 8B; what they would launch is
caught, compiled to machine code by the bundled ptxas, and its resources are read off the result.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message=".*FP_FUSION.*")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from pagoda.backends.cuda.adapters import AdapterTables, CudaAdapter, Factors, Site, StepAdapters
from pagoda.backends.cuda.fast import FastOps
from pagoda.backends.cuda.kernels import decode, gated
from pagoda.backends.cuda.kernels.gated import KINDS as KINDS_OF_GATES
from pagoda.backends.cuda.kv import DTYPES, KVLayer
from pagoda.backends.cuda.layer import AttentionLayer, Rotation
from pagoda.backends.cuda.metadata import Step
from pagoda.backends.cuda.planes import PlaneWeight, Scheme, Unpacked, pack
from pagoda.backends.cuda.unpack import KINDS
from pagoda.backends.specs import AttentionSpec, DeltaSpec, ExpertsSpec, KVType, LoraType, ScanSpec
from pagoda.formats.blocks import BLOCK_TYPES

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass
class Launch:
    """A kernel with the arguments that one launch gave it."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, int]

    @property
    def key(self) -> str:
        return f"{self.name} {sorted(self.signature.items())} {sorted(self.constants.items())} {self.options}"


def caught(run: Callable[[], object], name: str) -> list[Launch]:
    """What `run` would launch."""
    launches: list[Launch] = []

    def catch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        values = dict(zip(self.arg_names, args, strict=False)) | {k: v for k, v in options.items() if k not in OPTIONS}
        launches.append(_launch(name, self, values, {k: v for k, v in options.items() if k in OPTIONS}))

    original, JITFunction.run = JITFunction.run, catch
    try:
        run()
    finally:
        JITFunction.run = original
    return launches


def _launch(name: str, kernel: Any, values: dict[str, Any], options: dict[str, int]) -> Launch:
    """Types as Triton's launcher would find them; ints that are multiples of 16, and pointers, are said to be."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = 1
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    label = f"{name}: {kernel.fn.__module__.rsplit('.', 1)[1]}.{kernel.fn.__name__}"
    return Launch(label, kernel, signature, constants, attributes, options)


def compile_for(launch: Launch, capability: int) -> str:
    """→ registers and the like, as cuobjdump tells; raises what the compiler raises"""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    assert compiled.asm["cubin"], "no machine code"
    return f"{_resources(compiled.asm['cubin'])} shared {compiled.metadata.shared}"


def _resources(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=False).stdout
    return " ".join(f"{field} {value}" for field, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text))


# What is launched


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def kv_layer(kv_type: KVType, heads: int = 8, size: int = 128) -> KVLayer:
    kind, dtype = DTYPES[kv_type]
    pool = meta(1000, heads, 16, size, dtype=dtype)
    scale = meta(1000, heads, 16, dtype=torch.float32) if kind else None
    return KVLayer(pool, pool, scale, scale, kind)


def ints(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int32)


def step(tokens: int, *, short: int = 0, long: int = 0, rotary: int = 128, longest: int = 1) -> Step:
    angle = meta(tokens, rotary // 2, dtype=torch.float32)
    return Step(
        ints(4096), ints(tokens), ints(tokens), ints(tokens), ints(1), ints(0), ints(short, 2), ints(long, 2),
        1, ints(tokens // longest + 1), ints(tokens // longest), ints(tokens), longest, ((angle, angle),),
    )  # fmt: skip


def attention(
    heads: int = 32,
    kv_heads: int = 8,
    size: int = 128,
    *,
    norm: bool = False,
    style: bool = False,
    sinks: bool = False,
    **spec: Any,
) -> AttentionLayer:
    weight = meta(size, dtype=torch.float32) if norm else None
    of_heads = meta(heads, dtype=torch.float32) if sinks else None
    rotation = Rotation(0, size, style)
    return AttentionLayer(
        AttentionSpec(heads, kv_heads, size, 0.1, **spec), 0, 0, rotation, weight, weight, sinks=of_heads
    )


def weight(type: str, rows: int = 4096, columns: int = 4096) -> PlaneWeight:
    kind = KINDS[type]
    block = BLOCK_TYPES[type]
    raw = meta(rows, columns // block.elements, block.bytes, dtype=torch.uint8)
    book = None if kind.codebook is None else meta(16, dtype=torch.float32)
    return pack(kind.unpack(raw), kind.scheme, codebook=book)


def gptq(rows: int = 4096, columns: int = 4096) -> PlaneWeight:
    codes, groups = meta(rows, columns, dtype=torch.uint8), meta(rows, columns // 128)
    return pack(Unpacked(codes, groups, groups), Scheme((4,), 128))


def adapters(type: LoraType) -> tuple[tuple[Site, ...], StepAdapters]:
    """q, k and v of a layer, and a step of 64 tokens with adapters of rank 16."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[type]
    sites, factors = [], {}
    for name, start, rows in (("q", 0, 4096), ("k", 4096, 1024), ("v", 5120, 1024)):
        sites.append(Site(name, start, start + rows, 4096))
        floats = meta(rows, dtype=torch.float32)
        factors[name] = Factors(meta(16, 4096, dtype=dtype), meta(rows, 16, dtype=dtype), floats, floats, None, None)
    tables = AdapterTables.of([CudaAdapter(type, factors)], torch.device("meta"))
    return tuple(sites), StepAdapters(tables, (), ints(64), ints(4, 3))


def _attention_launches(fast: FastOps) -> Iterator[Launch]:
    layers: dict[str, tuple[KVType, AttentionLayer]] = {
        "f16": ("f16", attention()),
        "bf16": ("bf16", attention(norm=True)),
        "int8": ("int8", attention(style=True)),
        "fp8": ("fp8", attention(window=1024)),
        "f32": ("f32", attention(softcap=50.0)),
        "f16 sinks": ("f16", attention(64, 8, 64, sinks=True, window=128)),
        "f16 heads of 256": ("f16", attention(8, 1, 256, norm=True, window=512)),
        "f16 heads of 512": ("f16", attention(8, 1, 512, norm=True)),
        "int8 heads of 512": ("int8", attention(16, 2, 512, norm=True)),
        "f32 heads of 512": ("f32", attention(16, 2, 512, norm=True)),
    }
    for name, (kv_type, layer) in layers.items():
        heads, kv_heads, size = layer.spec.num_heads, layer.spec.num_kv_heads, layer.spec.head_dim
        q, k = meta(1, 64, heads * size, dtype=torch.bfloat16), meta(1, 64, kv_heads * size, dtype=torch.bfloat16)
        kv = kv_layer(kv_type, kv_heads, size)
        short, long = step(64, short=64, rotary=size), step(64, long=2, rotary=size)
        yield from caught(lambda: fast.rope_and_store_kv(q, k, k, layer, kv, short), f"{name} rope_and_store_kv")
        yield from caught(lambda: fast.attend(q[0], layer, kv, short), f"{name} short")
        yield from caught(lambda: fast.attend(q[0], layer, kv, long), f"{name} long")
    weight = meta(128, dtype=torch.float32)
    x = meta(1, 64, 32 * 128, dtype=torch.float32)
    yield from caught(lambda: fast.head_norm(x, weight, 1e-5, 32), "head norm")
    yield from caught(lambda: fast.rope(x, 32, Rotation(0, 128), short), "rope")


def _recurrent_launches(fast: FastOps) -> Iterator[Launch]:
    """Of Qwen3.5 9B's shape."""
    spec = DeltaSpec(16, 32, 128, 128, tiled=True)
    columns = 2 * 16 * 128 + 32 * 128
    x, per_head = meta(1, 64, columns, dtype=torch.bfloat16), meta(1, 64, 32, dtype=torch.bfloat16)
    taps, numbers = meta(columns, 4, dtype=torch.float32), meta(32, dtype=torch.float32)
    rows, states = meta(100, 3, columns, dtype=torch.float32), meta(100, 32, 128, 128, dtype=torch.float32)
    qkv = meta(1, 64, columns, dtype=torch.float32)
    for name, longest in (("one token", 1), ("several tokens", 32)):
        of = step(64, longest=longest)
        yield from caught(lambda: fast.short_conv(x, taps, rows, of, silu=True), f"short conv {name}")
        yield from caught(
            lambda: fast.delta_rule(qkv, per_head, per_head, numbers, numbers, spec, states, of), "delta rule"
        )
    scan = ScanSpec(48, 64, 1, 128)
    xbc, dt = meta(1, 64, scan.mixed_size, dtype=torch.float32), meta(1, 64, 48, dtype=torch.bfloat16)
    kept, of_heads = meta(100, 48, 64, 128, dtype=torch.float32), meta(48, dtype=torch.float32)
    several = step(64, longest=32)
    yield from caught(
        lambda: fast.selective_scan(xbc, dt, of_heads, of_heads, of_heads, scan, kept, several), "selective scan"
    )


def _expert_launches(fast: FastOps) -> Iterator[Launch]:
    """Of gpt-oss 20B's shape, and one whose weights are floats."""
    spec, size = ExpertsSpec(4, normalize=True, activation="silu"), 2880
    numbers = (meta(32, size, dtype=torch.float32),) * 3
    for name, stack in (("MXFP4", weight("MXFP4", 32 * size, size)), ("dense", meta(32 * size, size))):
        for tokens in (1, 64, 4096):
            x, router = meta(1, tokens, size), meta(1, tokens, 32)
            given = (x, router, stack, stack, stack, spec, None, numbers)
            yield from caught(lambda: fast.stacked_experts(*given), f"experts {name} {tokens} tokens")


def launches() -> Iterator[Launch]:
    """Every kernel in every variant that differs in code."""
    half, brain = torch.float16, torch.bfloat16
    for dtype in (half, brain):
        fast = FastOps(dtype, max_context=8192, max_seqs=64)
        x, wide = meta(1, 64, 4096, dtype=dtype), meta(1, 64, 4096, dtype=torch.float32)
        norm_weight = meta(4096, dtype=torch.float32)
        yield from caught(lambda: fast.norm(wide, x, norm_weight, 1e-5), "add, norm")
        yield from caught(lambda: fast.gated(x, x, "silu"), "silu")
    fast = FastOps(brain, max_context=8192, max_seqs=64)
    invariant = FastOps(brain, batch_invariant=True, max_context=8192, max_seqs=64)
    x1, x64, w = meta(1, 1, 4096, dtype=brain), meta(1, 64, 4096, dtype=brain), meta(4096, 4096, dtype=brain)
    parts = meta(4, 64, 4096, dtype=torch.float32)
    yield from caught(lambda: fast.norm(None, parts, norm_weight, 1e-5), "norm of parts")
    yield from caught(lambda: fast.gated(parts, parts, "gelu_tanh"), "gelu_tanh of parts")
    for activation in KINDS_OF_GATES:
        yield from caught(lambda: gated.gated(x64, x64, activation, brain), f"{activation}")
    yield from caught(lambda: fast.gated(x64, None, "relu2"), "relu2 alone")
    yield from caught(lambda: fast.norm(wide, x, norm_weight, 1e-5, norm_weight), "layer norm")
    yield from caught(lambda: fast.linear(x1, w, None, brain), "one token")
    yield from caught(lambda: invariant.linear(x64, w, None, brain), "invariant")
    yield from caught(lambda: fast.linear(x64, w, None, torch.float32), "logits")
    yield from _attention_launches(fast)
    yield from _recurrent_launches(fast)
    yield from _expert_launches(FastOps(half, max_context=8192, max_seqs=64))
    h1, h16, h256 = meta(1, 1, 4096), meta(1, 16, 4096), meta(1, 256, 4096)
    fast = FastOps(half, max_context=8192, max_seqs=64)
    for name, planes in {**{type: weight(type) for type in KINDS}, "g128": gptq()}.items():
        yield from caught(lambda: fast.linear(h1, planes, None, half), f"{name} one token")
        yield from caught(lambda: fast.linear(h16, planes, None, half), f"{name} few tokens")
    for name in ("Q4_K", "Q6_K"):
        yield from caught(lambda: fast.linear(h256, weight(name), None, half), f"{name} many tokens")
        yield from caught(lambda: decode.decode(weight(name), None, half), f"{name} decode")
    for dtype, type in ((brain, "bf16"), (half, "int8"), (torch.float32, "f32")):
        sites, adapted = adapters(type)  # type: ignore[arg-type]
        x, out, places = meta(1, 64, 4096, dtype=dtype), meta(1, 64, 6144, dtype=dtype), ints(3, 2)
        yield from caught(lambda: fast.add_adapters(x, out, sites, places, adapted), f"{type} adapters")
    logits = meta(64, 128256, dtype=torch.float32)
    yield from caught(lambda: fast.weights(logits, fast.likeliest(logits, 64)[2]), "sampling")
    tokens = ints(64)
    yield from caught(lambda: fast.embed(weight("Q5_K"), tokens, 1.0), "Q5_K embed")


def main(capabilities: list[int], wanted: str = "") -> int:
    """Compile those whose name matches. → how many failed"""
    unique = [
        launch for launch in {launch.key: launch for launch in launches()}.values() if re.search(wanted, launch.name)
    ]
    jobs = [(launch, capability) for capability in capabilities for launch in unique]
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        results = [(job, pool.submit(compile_for, *job)) for job in jobs]
        for (launch, capability), result in results:
            try:
                print(f"sm_{capability} {launch.name:45} {result.result()}", flush=True)
            except Exception as error:
                failed += 1
                print(f"sm_{capability} {launch.name:45} FAILED {type(error).__name__}: {error}", flush=True)
    print(f"{len(jobs)} kernels, {failed} failed")
    return failed


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    patterns = [argument for argument in sys.argv[1:] if not argument.isdigit()]
    sys.exit(bool(main(numbers or [80, 90], "|".join(patterns))))
