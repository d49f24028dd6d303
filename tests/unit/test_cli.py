"""The command line without a model: verbs, flags from settings, errors as one line."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import pagoda
from pagoda.cli import main as main_module
from pagoda.cli.main import VERBS, Verb, app
from pagoda.cli.options import with_settings
from pagoda.config import EngineSettings, ServerSettings
from pagoda.errors import ConfigError, FormatError
from pagoda.settings import Setting, Settings

runner = CliRunner()


@dataclass(frozen=True, slots=True)
class Own(Settings):
    table = "chat"
    size: Annotated[int, Setting("Bytes.", size=True)] = 2 << 20
    names: Annotated[tuple[str, ...], Setting("Names.")] = ()


seen: list[tuple[object, ...]] = []


@with_settings
def verb(
    count: Annotated[int, typer.Option(help="How many.")] = 1,
    *,
    engine: EngineSettings,
    server: ServerSettings,
    own: Own,
) -> None:
    """Do it."""
    seen.append((count, engine, server, own))


@with_settings
def failing(engine: EngineSettings) -> None:
    """Fail."""
    raise {
        "format": FormatError("bad magic", path="x.gguf", offset=0),
        "config": ConfigError("no"),
        "disk": OSError(28, "No space left on device", "out.json"),
    }[engine.model]


@with_settings
def interrupted(engine: EngineSettings) -> None:
    """Be stopped by the user."""
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("verb", "failing", "interrupted"):
        monkeypatch.setitem(VERBS, name, Verb(f"{__name__}:{name}", "Test.", f"pagoda {name} 5"))
    monkeypatch.setitem(VERBS, "verb again", Verb(f"{__name__}:interrupted", "Test.", "-"))
    seen.clear()


def invoke(*args: str) -> str:
    result = runner.invoke(app, args)
    assert result.exit_code == 0, result.output
    return result.output


def run_main(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pagoda", *args])
    with pytest.raises(SystemExit) as stopped:
        main_module.main()
    code = stopped.value.code
    assert isinstance(code, int)
    return code


def test_flags_fill_the_settings() -> None:
    flags = "verb m.gguf --count 3 --threads 2 --kv-memory 1GiB --no-prefix-caching --api-key a --api-key b --size 1k"
    invoke(*flags.split(), "--names", "x,y")
    (count, engine, server, own) = seen[0]
    assert count == 3
    assert engine == EngineSettings("m.gguf", threads=2, kv_memory_bytes=1 << 30, prefix_caching=False)
    assert server == ServerSettings(api_keys=("a", "b"))
    assert own == Own(1000, ("x", "y"))


def test_without_flags_there_are_the_defaults() -> None:
    invoke("verb")
    assert seen == [(1, EngineSettings(), ServerSettings(), Own())]


def test_the_model_may_be_a_flag_too() -> None:
    invoke("verb", "--model", "a")
    assert seen[0][1] == EngineSettings("a")


def test_environment_and_file_reach_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAGODA_THREADS", "3")
    monkeypatch.setenv("PAGODA_CHAT_SIZE", "3k")
    (tmp_path / "my.toml").write_text("port = 5\nthreads = 1")
    invoke("verb", "--config", "my.toml")
    assert seen == [(1, EngineSettings(threads=3), ServerSettings(port=5), Own(3000))]


def test_help_shows_flags_defaults_and_an_example() -> None:
    text = " ".join(invoke("verb", "--help").split())
    assert "Do it." in text
    assert "Example: pagoda verb 5" in text
    assert "--kv-type auto|f16|bf16|f32|int16|int8|fp8 Number type of the KV cache." in text
    assert "f16 elsewhere. [default: auto]" in text
    assert "--size SIZE Bytes. [default: 2MiB]" in text
    assert "--prefix-caching / --no-prefix-caching" in text


def test_without_a_verb_it_says_what_to_do_first() -> None:
    text = invoke()
    for verb in ("serve", "chat", "plan MODEL", "doctor", "--help"):
        assert f"pagoda {verb} " in text


def test_help_lists_every_verb_without_importing_any() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from pagoda.cli.main import app;"
        "print(CliRunner().invoke(app, ['--help']).output);"
        "print('IMPORTED', [m for m in sys.modules if m in ('numpy', 'fastapi', 'pydantic', 'rich', 'jinja2')])"
    )
    output = python("-c", code)
    for name in ("serve", "chat", "generate", "pull", "inspect", "doctor", "bench"):
        assert f"\n  {name} " in output
    imported = output.rsplit("IMPORTED ", 1)[1].strip()
    assert "numpy" not in imported
    assert "fastapi" not in imported


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_has_help(name: str) -> None:
    text = invoke(*name.split(), "--help")
    assert f"Usage: root {name} " in text or f"Usage: pagoda {name} " in text
    assert "Example: " in text


def test_every_group_of_verbs_is_listed() -> None:
    groups = {name.split()[0] for name in VERBS if " " in name}
    overview = invoke("--help")
    for group in groups - {"verb"}:
        assert f"\n  {group} " in overview
        listed = invoke(group, "--help")
        assert all(f"\n  pagoda {name} " in listed for name in VERBS if name.startswith(f"{group} "))
    for group in ("adapter", "cache", "cost", "deploy", "eval"):
        assert all(f"pagoda {name} " in invoke(group) for name in VERBS if name.startswith(f"{group} "))


def test_keys_have_the_flags_of_their_file_and_limits_alone() -> None:
    text = invoke("keys", "create", "--help")
    assert "--keys-file" in text
    assert "--tokens-per-day" in text
    assert "--port" not in text


def test_a_verb_of_two_words() -> None:
    assert runner.invoke(app, ["verb", "again"]).exit_code == 130
    assert seen == []
    invoke("verb", "more")
    assert seen[0][1] == EngineSettings("more")


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "failing", "format") == 1
    assert capsys.readouterr().err == "error: x.gguf: at byte 0: bad magic\n"
    assert run_main(monkeypatch, "failing", "config") == 2
    assert run_main(monkeypatch, "failing", "config", "--threads", "x") == 2
    assert "--threads: 'x' is not a whole number" in capsys.readouterr().err


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "failing", "disk") == 1
    assert capsys.readouterr().err == "error: out.json: No space left on device\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError):
        run_main_raw(monkeypatch, "--debug", "failing", "format")
    monkeypatch.setenv("PAGODA_DEBUG", "1")
    with pytest.raises(FormatError):
        run_main_raw(monkeypatch, "failing", "format")


def python(*args: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(Path(pagoda.__file__).parents[1])}
    return subprocess.run([sys.executable, *args], stdout=subprocess.PIPE, text=True, check=True, env=environ).stdout


def run_main_raw(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pagoda", *args])
    main_module.main()


@pytest.mark.parametrize(
    ("verb", "reads", "not_read"),
    [
        ("doctor", "--threads --isa --host --port --url", "MODEL --lora --cache --api-key --kv-type"),
        ("bench", "--batch --kv-type --threads", "--lora --kv-offload --draft-model --max-num-seqs --speculation"),
        ("bench speculation", "--draft-model --speculation", "--lora --kv-offload"),
        ("eval run", "--judge --threads", "MODEL --lora"),
        ("cache stats", "--cache-store --cache-key", "--cache-embedder --cache-ttl"),
        ("cache search", "--cache-store --cache-key --cache-embedder", "--cache-ttl --cache-judge"),
    ],
)
def test_help_lists_what_the_verb_reads(verb: str, reads: str, not_read: str) -> None:
    text = invoke(*verb.split(), "--help")
    listed = set(" ".join(re.findall(r"^  ((?:-\w, )?--[\w, -]+)", text, re.MULTILINE)).replace(",", " ").split())
    listed |= {"MODEL"} if "[MODEL]" in text else set()
    assert set(reads.split()) <= listed
    assert not set(not_read.split()) & listed


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "interrupted") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_version_and_module() -> None:
    assert invoke("--version") == f"pagoda {pagoda.__version__}\n"
    assert python("-m", "pagoda", "--version") == f"pagoda {pagoda.__version__}\n"


def test_an_unknown_verb_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "doctr") == 2
    assert "No such command 'doctr'" in capsys.readouterr().err
