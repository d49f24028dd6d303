"""The command that a plan ends in: flags that `pagoda serve` has, a model that it can open, and honest notes."""

import shlex
from typing import Any

import pytest
from typer.testing import CliRunner

from pagoda.cli.main import app
from pagoda.cli.plan_tables import shell_lines
from pagoda.config import EngineSettings, load_settings
from pagoda.plan import plan
from pagoda.quantize.methods import find_method
from pagoda.settings import fields


def serve(model: str, on: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = plan(model, on=on, **options).to_json()["plans"][0]["serve"]
    return found


@pytest.mark.parametrize("on", ["a100-80gb", "aws-c7a-4xlarge", "apple-m3-max"])
def test_the_flags_are_those_of_serve(on: str) -> None:
    found = serve("llama-3-8b", on, concurrency=3, prompt=900, output=100, kv_type="int8", activation_type="int8")
    by_key = {field.key: field.name for field in fields(EngineSettings)}
    given = {by_key[flag.removeprefix("--")]: value for flag, value in found["flags"].items()}
    settings = load_settings(EngineSettings, given, environ={})
    assert settings.backend == ("cuda" if on == "a100-80gb" else "cpu")
    assert (settings.max_num_seqs, settings.max_context, settings.kv_type) == (3, 1000, "int8")
    assert settings.activation_type == ("int16" if settings.backend == "cuda" else "int8")
    on_or_off = "Speculation is off" if settings.backend == "cuda" else "Speculation is on"
    assert found["speculation"].startswith(on_or_off)


def test_a_draft_model_is_a_flag_and_takes_memory() -> None:
    options = {"format": "fp16", "concurrency": 2, "context": 1024}
    alone = plan("qwen2.5-7b", on="a100-80gb", **options).targets[0]
    both = plan("qwen2.5-7b", on="a100-80gb", draft_model="qwen2.5-0.5b", **options).targets[0]
    draft = plan("qwen2.5-0.5b", on="a100-80gb", **options).targets[0].memory
    assert both.memory.weight_bytes == alone.memory.weight_bytes + draft.weight_bytes
    assert both.memory.kv_context_bytes == alone.memory.kv_context_bytes + draft.kv_context_bytes
    assert both.memory.runtime_bytes == alone.memory.runtime_bytes
    found = serve("qwen2.5-7b", "a100-80gb", draft_model="qwen2.5-0.5b", **options)
    assert found["flags"]["--draft-model"] == "hf:Qwen/Qwen2.5-0.5B"
    assert found["speculation"].startswith("Speculation is on, with a draft model")


def test_tensor_parallelism_is_a_flag_and_pipelines_are_told() -> None:
    found = serve("llama-3-70b", "h100", format="fp16", tp=4)
    assert found["flags"]["--tensor-parallel"] == "4"
    assert found["note"] is None
    assert "pipeline parallelism" in serve("llama-3-70b", "h100", format="fp16", pp=4)["note"]


def test_a_format_that_is_not_the_files_is_made_first() -> None:
    found = serve("llama-3-8b", "aws-c7a-24xlarge", format="fp32")
    words = shlex.split(found["first"])
    assert words[:3] == ["pagoda", "quantize", "hf:meta-llama/Meta-Llama-3-8B"]
    assert find_method(words[words.index("--to") + 1]).suffix == ".gguf"
    assert shlex.split(found["command"])[2] == words[-1] == "llama-3-8b-fp32.gguf"
    assert serve("llama-3-8b", "l4", format="fp16", context=1024, concurrency=1)["first"] is None


@pytest.mark.parametrize(
    ("model", "on", "format", "says"),
    [
        ("phi-3.5-moe", "h200", "fp16", "does not run phimoe models"),
        ("llama-3-8b", "h100", "fp8", "makes no fp8"),
        ("llama-3-8b", "mi300x", "fp16", "NVIDIA"),
        ("llama-3-8b", "apple-m3-max", "q4_k_m", "CPU cores"),
    ],
)
def test_what_the_server_does_not_do_is_said(model: str, on: str, format: str, says: str) -> None:
    assert says in serve(model, on, format=format)["note"]


def test_long_commands_are_broken_as_a_shell_reads_them() -> None:
    command = serve("llama-3-8b", "a100-80gb")["command"]
    lines = shell_lines(command, 60)
    assert all(len(line) <= 60 for line in lines)
    assert len(lines) > 2
    joined = "\n".join(lines).replace("\\\n", "")  # as POSIX has it
    assert shlex.split(joined) == shlex.split(command)


def test_on_and_device_are_the_same_flag() -> None:
    runner = CliRunner()
    answers = [runner.invoke(app, ["plan", "llama-3-8b", flag, "l4,h100"]) for flag in ("--on", "--device")]
    assert answers[0].exit_code == 0
    assert "l4" in answers[0].output
    assert answers[0].output == answers[1].output
