"""What `pagoda doctor` finds in the way, on machines of our making."""

import json
import re
import socket
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pagoda
from measurements import FOUND
from pagoda.cli.doctor import OPTIONAL, cached_models, find_warnings, port_is_free
from pagoda.cli.main import app
from pagoda.config import EngineSettings, ServerSettings
from pagoda.errors import ConfigError
from pagoda.hardware.host import Hardware

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GIB = 2**30
GOOD = Hardware(
    cpu="c",
    machine="x86_64",
    logical_cpus=8,
    allowed_cpus=8,
    physical_cores=4,
    usable_cores=4,
    cpu_quota=None,
    isa_paths=("generic", "avx2"),
    memory_total=16 * GIB,
    memory_available=8 * GIB,
    memory_limit=None,
    huge_pages="madvise",
    numa_nodes=1,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def warnings(hardware: Hardware = GOOD, *, port_free: bool = True, **engine: object) -> list[tuple[str, str]]:
    settings = EngineSettings(**engine)  # type: ignore[arg-type]
    found = find_warnings(hardware, settings, ServerSettings(), port_free=port_free)
    return [(warning.problem, warning.remedy) for warning in found]


def test_nothing_is_wrong_with_a_good_machine() -> None:
    assert warnings() == []


@pytest.mark.parametrize(
    ("change", "engine", "problem", "remedy"),
    [
        ({"cpu_quota": 1.5}, {}, "allows 1.5 CPUs to 4 threads", "use --threads 1"),
        ({"cpu_quota": 0.5}, {}, "allows 0.5 CPUs", "use --threads 1"),
        ({}, {"threads": 9}, "9 threads share 8 CPUs", "use --threads 4"),
        ({}, {"isa": "avx512"}, "--isa avx512 is not available here", "use one of generic, avx2"),
        ({"isa_paths": ("generic",)}, {}, "only generic kernels", "AVX2"),
        ({"memory_available": GIB // 2}, {}, "only 0.5 GiB", "free some"),
        ({"memory_limit": GIB // 4}, {}, "only 0.2 GiB", "container's limit"),
        ({"huge_pages": "never"}, {}, "huge pages are off", "echo madvise"),
    ],
)
def test_each_obstacle_has_its_remedy(change: dict, engine: dict, problem: str, remedy: str) -> None:
    ((found, advice),) = warnings(replace(GOOD, **change), **engine)
    assert problem in found
    assert remedy in advice


def test_a_quota_that_suffices_is_no_obstacle() -> None:
    assert warnings(replace(GOOD, cpu_quota=4.0)) == []
    assert warnings(replace(GOOD, cpu_quota=2.0), threads=2) == []
    assert warnings(replace(GOOD, cpu_quota=2.0, usable_cores=2)) == []


def test_a_cache_that_cannot_be_made(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert [problem for problem, _ in warnings()] == [f"{cache} cannot be written"]


def test_a_taken_port() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
    assert port_is_free("127.0.0.1", port)
    assert warnings(port_free=False)[0][1] == "stop what uses it, or choose another --port"
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid"):
        port_is_free("no.such.host.invalid", 1)


def test_cached_models(cache: Path) -> None:
    assert cached_models(cache) == []
    (cache / "models/pypi").mkdir(parents=True)
    (cache / "models/pypi/m.gguf").write_bytes(b"12345")
    (cache / "models/pypi/m.gguf.part").write_bytes(b"1")
    assert cached_models(cache) == [{"file": "models/pypi/m.gguf", "bytes": 5}]


def test_the_command(cache: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json", "--no-measure", "--threads", "1", "--port", "0"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["threads"] == 1
    assert report["port"] == {"host": "127.0.0.1", "port": 0, "free": True}
    assert report["isa"] == report["hardware"]["isa_paths"][-1]
    assert report["read_bandwidth"] is None
    text = CliRunner().invoke(app, ["doctor", "--no-measure", "--port", "0"]).output
    assert report["hardware"]["cpu"] in text
    assert "cache" in text


def test_what_was_measured_while_busy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = replace(
        FOUND, date=date.today().isoformat(), doubts=("Q4_0 weights at 66,378.8 GB/s, which memory cannot give",)
    )
    monkeypatch.setattr("pagoda.cli.doctor.measurement", lambda **_: busy)
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json", "--port", "0"]).stdout)
    (warning,) = [one for one in report["warnings"] if "not to be trusted" in one["problem"]]
    assert "66,378.8 GB/s" in warning["problem"]
    assert "while the machine rests" in warning["remedy"]
    said = CliRunner().invoke(app, ["doctor", "--port", "0"]).stdout
    assert "while the machine was busy, so it is not kept" in " ".join(said.split())


def test_extras_are_those_of_the_package_and_imported_somewhere() -> None:
    """`OPTIONAL` names what the extras of pyproject.toml bring, but those for development."""
    source = Path(pagoda.__file__).parent
    extras = tomllib.loads((source.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {re.split(r"[<>=\[]", need)[0] for name, needs in extras.items() if name != "dev" for need in needs}
    assert packages == set(OPTIONAL)
    code = "\n".join(path.read_text() for path in source.rglob("*.py") if path.name != "doctor.py")
    for name in OPTIONAL.values():
        assert re.search(rf"^\s*(import|from) {name}\b|import_module\(\"{name}", code, re.MULTILINE), name
