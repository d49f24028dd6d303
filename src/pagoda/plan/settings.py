"""What a plan is asked for: the flags of `pagoda plan`, and the parameters of `pagoda.plan.plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pagoda.errors import ConfigError
from pagoda.routing.router import Routing
from pagoda.settings import Setting, Settings

MAX_TOKENS = 1 << 26
# Bounds where none is given: who would wait longer for a first token, and a slow reader's pace.
USUAL_TTFT_MS, USUAL_TPOT_MS = 10_000.0, 250.0
Figure = Literal["memory", "ttft", "tpot"]
FIGURES: tuple[Figure, ...] = ("memory", "ttft", "tpot")


@dataclass(frozen=True, slots=True)
class PlanSettings(Settings):
    """Flags of `pagoda plan`."""

    table = "plan"

    model: Annotated[
        str, Setting("GGUF file, folder or config.json, hf:owner/repo, or a name such as llama-3-8b.", positional=True)
    ] = "smollm2-135m"
    on: Annotated[
        tuple[str, ...], Setting("Devices, by commas; `this` is this machine, measured.", also=("device",))
    ] = ("this",)
    format: Annotated[
        tuple[str, ...],
        Setting("Weight formats, by commas: fp16, awq, q4_k_m …; by default the file's, or what is usual there."),
    ] = ()
    context: Annotated[
        int | None, Setting("Longest prompt + output; that of prompt and output by default.", minimum=1)
    ] = None
    prompt: Annotated[int, Setting("Tokens of a prompt.", minimum=1, maximum=MAX_TOKENS)] = 512
    output: Annotated[int, Setting("Tokens of an answer.", minimum=1, maximum=MAX_TOKENS)] = 128
    lengths: Annotated[
        Path | None, Setting("File of your own requests' lengths, a line each: PROMPT OUTPUT; shows what paging saves.")
    ] = None
    concurrency: Annotated[int | None, Setting("Users at once.", minimum=1)] = None
    ttft: Annotated[
        float | None,
        Setting(f"Bound on the time to the first token, in ms; {USUAL_TTFT_MS:g} where one user alone keeps that."),
    ] = None
    tpot: Annotated[
        float | None, Setting(f"Bound on the time between tokens, in ms; {USUAL_TPOT_MS:g} where one alone keeps that.")
    ] = None
    price: Annotated[float | None, Setting("USD an hour for one device; the table's list price by default.")] = None
    gpus: Annotated[int, Setting("Devices together; split by tensors where heads allow it.", minimum=1)] = 1
    tp: Annotated[int | None, Setting("Devices that share every layer (tensor parallel).", minimum=1)] = None
    pp: Annotated[int | None, Setting("Stages of layers (pipeline parallel).", minimum=1)] = None
    kv_type: Annotated[
        Literal["auto", "f16", "bf16", "f32", "fp8", "int16", "int8"],
        Setting("Number type of the KV cache; auto: what `pagoda serve` takes on the device."),
    ] = "auto"
    activation_type: Annotated[
        Literal["int16", "int8"],
        Setting("Codes of activations, as in `pagoda serve`; this machine is measured with them."),
    ] = "int16"
    draft_model: Annotated[
        str | None, Setting("Model that guesses for this one, as in `pagoda serve`: what it takes of memory.")
    ] = None
    max_batch_tokens: Annotated[
        int | None, Setting("Token budget of one step; 512 on CPUs, 4096 on GPUs by default.", minimum=1)
    ] = None
    memory_utilization: Annotated[float, Setting("Share of the memory that may be taken.", minimum=0.01, maximum=1)] = (
        0.9
    )
    batch: Annotated[tuple[int, ...], Setting("Concurrencies to show throughput at.", minimum=1)] = (
        *(1, 2, 4, 8, 16, 32, 64, 128, 256),
    )
    plot: Annotated[Path | None, Setting("Draw roofline, throughput and latency into this .png, .svg or .pdf.")] = None
    json: Annotated[bool, Setting("Print JSON.")] = False
    helm_values: Annotated[bool, Setting("Print values for deploy/helm/pagoda: of the first device and format.")] = (
        False
    )
    verify: Annotated[bool, Setting("Run the engine here, and print predicted, measured and error; some minutes.")] = (
        False
    )
    figures: Annotated[tuple[Figure, ...], Setting("With --verify: which figures.")] = FIGURES
    verify_seconds: Annotated[
        float | None, Setting("With --verify: begin no further round of timing after so long; six rounds by default.")
    ] = None
    fleet: Annotated[
        Path | None,
        Setting("Simulate a fleet of replicas under the traffic of a --request-log, within --ttft and --tpot at p95."),
    ] = None
    fleet_replicas: Annotated[
        int | None, Setting("With --fleet: replicas that wrote the log; prints the simulation's error.", minimum=1)
    ] = None
    fleet_calibration: Annotated[
        tuple[Path, ...],
        Setting("With --fleet: other --request-logs of such replicas, by commas; how much slower they are is learned."),
    ] = ()
    fleet_routing: Annotated[Routing, Setting("With --fleet: how requests are routed, as in `pagoda gateway`.")] = (
        "affinity"
    )
    fleet_kv_tokens: Annotated[
        int | None, Setting("With --fleet: tokens that a replica's KV cache holds.", minimum=1)
    ] = None


def check(settings: PlanSettings) -> None:
    """ConfigError, in a sentence, for what makes no sense: the command line's parser has not seen the API's values."""
    for name in ("ttft", "tpot", "price", "verify_seconds"):
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be a number above 0")
    for name in ("prompt", "output", "gpus", "context", "concurrency", "tp", "pp", "max_batch_tokens"):
        value = getattr(settings, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be a whole number from 1 on")
    if not 0 < settings.memory_utilization <= 1:
        raise ConfigError(f"--memory-utilization {settings.memory_utilization:g}: must be above 0 and at most 1")
    if settings.context is not None and settings.context < settings.prompt + settings.output:
        raise ConfigError(
            f"--context {settings.context} does not hold a prompt of {settings.prompt} and an answer of "
            f"{settings.output} tokens"
        )
    if settings.concurrency is not None and (settings.ttft or settings.tpot):
        raise ConfigError("--concurrency asks what latency it gives, --ttft and --tpot ask what concurrency: give one")
    if not settings.on or any(not name for name in settings.on):
        raise ConfigError("--on: name a device, such as this or a100-80gb")


def read_lengths(path: Path) -> list[tuple[int, int]]:
    """Pairs of a prompt's and an answer's length, a line each. ConfigError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--lengths: {path} cannot be read: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not all(word.isdigit() and 0 < int(word) < MAX_TOKENS for word in words):
            raise ConfigError(
                f"--lengths: {path}, line {number}: {line[:60]!r} is not PROMPT OUTPUT, two counts of tokens"
            )
        pairs.append((int(words[0]), int(words[1])))
    if not pairs:
        raise ConfigError(f"--lengths: {path} holds no lengths")
    return pairs
