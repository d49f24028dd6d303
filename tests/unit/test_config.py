"""Every setting from every source, and what each source says when it is wrong."""

import re
from contextlib import suppress
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pagoda
from pagoda.config import TABLES, EngineSettings, ServerSettings, cache_dir, check_environment, load_settings
from pagoda.errors import ConfigError
from pagoda.settings import Setting, Settings, fields, parse_size


@dataclass(frozen=True, slots=True)
class VerbSettings(Settings):
    table = "bench"
    runs: Annotated[int, Setting("Runs.", minimum=1)] = 5
    batch: Annotated[tuple[int, ...], Setting("Sizes.", minimum=1)] = (1, 16)
    where: Annotated[Path | None, Setting("Folder.")] = None


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "pagoda.toml"
    path.write_text(text)
    return path


def test_flag_beats_environment_beats_file_beats_default(empty_folder: Path) -> None:
    assert load_settings(ServerSettings, environ={}).port == 8000
    write(empty_folder, "port = 1\nhost = 'h'")
    assert load_settings(ServerSettings, environ={}).port == 1
    assert load_settings(ServerSettings, environ={"PAGODA_PORT": "2"}).port == 2
    settings = load_settings(ServerSettings, {"port": "3", "host": None}, environ={"PAGODA_PORT": "2"})
    assert (settings.port, settings.host) == (3, "h")


def test_an_empty_variable_is_none(empty_folder: Path) -> None:
    assert load_settings(ServerSettings, environ={"PAGODA_PORT": ""}).port == 8000


def test_the_file_may_be_named_by_flag_or_environment(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("threads = 1")
    two.write_text("threads = 2")
    assert load_settings(EngineSettings, environ={"PAGODA_CONFIG": str(one)}).threads == 1
    assert load_settings(EngineSettings, config=two, environ={"PAGODA_CONFIG": str(one)}).threads == 2
    for missing in ({"config": tmp_path / "no.toml"}, {"environ": {"PAGODA_CONFIG": str(tmp_path / "no.toml")}}):
        with pytest.raises(ConfigError, match=r"no\.toml: cannot be read: No such file"):
            load_settings(EngineSettings, **({"environ": {}} | missing))


def test_a_verb_reads_its_own_table(empty_folder: Path) -> None:
    write(empty_folder, "threads = 2\n[bench]\nruns = 9\nbatch = [2, 4]")
    settings = load_settings(VerbSettings, environ={"PAGODA_BENCH_WHERE": "/x"})
    assert settings == VerbSettings(runs=9, batch=(2, 4), where=Path("/x"))
    assert load_settings(VerbSettings, {"batch": "1,2, 3"}, environ={}).batch == (1, 2, 3)
    assert load_settings(EngineSettings, environ={}).threads == 2


def test_hyphens_and_underscores_are_the_same_in_files(empty_folder: Path) -> None:
    write(empty_folder, "max_num_seqs = 3\nkv-memory = '2GiB'\napi_key = ['a', 'b']")
    settings = load_settings(EngineSettings, environ={})
    assert (settings.max_num_seqs, settings.kv_memory_bytes) == (3, 2 << 30)
    assert load_settings(ServerSettings, environ={}).api_keys == ("a", "b")
    assert load_settings(ServerSettings, {"api_keys": ["c", "d,e"]}, environ={}).api_keys == ("c", "d", "e")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thread = 4", "unknown key 'thread'; did you mean 'threads'?"),
        ("xyzzy = 4", "unknown key 'xyzzy'; known are activation-type, admin-key"),
        ("[benhc]\nruns = 1", "unknown table 'benhc'; did you mean 'bench'?"),
        ("threads = 'four'", "threads: 'four' is not a whole number"),
        ("threads = 1.5", "threads: 1.5 is not a whole number"),
        ("threads = true", "threads: True is not a whole number"),
        ("threads = -1", "threads: -1 is out of range, must be at least 0"),
        ("memory-utilization = 1.5", "memory-utilization: 1.5 is out of range, must be between 0.01 and 1"),
        ("memory-utilization = nan", "memory-utilization: nan is not a number"),
        ("kv-memory = '4 gallons'", "kv-memory: '4 gallons' is not a size such as 4GiB"),
        ("kv-type = 'f8'", "kv-type: 'f8' is not one of auto, f16, bf16, f32, int16, int8, fp8"),
        ("prefix-caching = 'perhaps'", "prefix-caching: 'perhaps' is not true or false"),
        ("model = 3", "model: 3 is not text"),
        ("model = [", "is not TOML"),
    ],
)
def test_wrong_files_are_named_with_their_key(empty_folder: Path, text: str, says: str) -> None:
    path = write(empty_folder, text)
    with pytest.raises(ConfigError, match=re.escape(says)) as raised:
        load_settings(EngineSettings, config=path, environ={})
    assert str(path) in str(raised.value)


def test_unknown_keys_of_a_verbs_table(empty_folder: Path) -> None:
    write(empty_folder, "[bench]\nrunz = 1")
    with pytest.raises(ConfigError, match=r"pagoda\.toml: unknown key in \[bench\] 'runz'; did you mean 'runs'\?"):
        load_settings(VerbSettings, environ={})


def test_wrong_flags_and_variables_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^--max-num-seqs: 'x' is not a whole number"):
        load_settings(EngineSettings, {"max_num_seqs": "x"}, environ={})
    with pytest.raises(ConfigError, match=r"^PAGODA_KV_TYPE: 'f8' is not one of auto"):
        load_settings(EngineSettings, environ={"PAGODA_KV_TYPE": "f8"})


def test_the_variable_that_kubernetes_sets_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"PAGODA_PORT: .*enableServiceLinks"):
        load_settings(ServerSettings, environ={"PAGODA_PORT": "tcp://10.0.0.1:8000"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1024", 1024),
        ("4GiB", 4 << 30),
        ("4 gi", 4 << 30),
        ("1.5 MiB", 3 << 19),
        ("2GB", 2 * 10**9),
        ("3k", 3000),
        ("1T", 10**12),
        ("512b", 512),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@given(st.text(max_size=12) | st.from_regex(r"[-+.0-9einaf]{1,6} ?[kmgtKMGT]?i?[bB]?", fullmatch=True))
def test_sizes_are_numbers_of_bytes_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert parse_size(text) >= 0


@pytest.mark.parametrize("cls", [EngineSettings, ServerSettings])
def test_every_setting_says_what_it_is_and_has_a_default_that_it_accepts(cls: type[Settings]) -> None:
    for field in fields(cls):
        assert field.about.help, field.name
        assert field.default is not MISSING
        if field.default not in (None, ()):
            text = ",".join(field.default) if field.many else str(field.default)
            assert field.parse(text, "x") == field.default
    assert cls() == load_settings(cls, environ={})


def test_no_two_settings_share_a_key_or_variable() -> None:
    listed = [field for cls in (EngineSettings, ServerSettings) for field in fields(cls)]
    assert len({field.key for field in listed}) == len({field.env for field in listed}) == len(listed)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PAGODA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "pagoda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "pagoda"
    monkeypatch.setenv("PAGODA_CACHE", "~/models")
    assert cache_dir() == Path.home() / "models"


def test_nothing_else_reads_the_environment() -> None:
    import pagoda

    source = Path(pagoda.__file__).parent
    readers = [path.name for path in source.rglob("*.py") if re.search(r"os\.(environ|getenv)", path.read_text())]
    assert readers == ["config.py"]


def test_every_verbs_table_may_stand_in_the_file() -> None:
    """`table = "plan"` of a settings class, wherever in the source it is."""
    source = Path(pagoda.__file__).parent
    stated = {
        name
        for path in source.rglob("*.py")
        for name in re.findall(r'^    table = "([a-z-]+)"$', path.read_text(), re.MULTILINE)
    }
    assert stated == set(TABLES)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("PAGODA_MAX_CONTEX", "did you mean PAGODA_MAX_CONTEXT?"),
        ("PAGODA_HOSTS", "did you mean PAGODA_HOST?"),
        ("PAGODA_XYZZY", "--help"),
        ("pagoda_threads", "did you mean PAGODA_THREADS?"),
        ("PAGODATHREADS", "did you mean PAGODA_THREADS?"),
    ],
)
def test_variables_that_nothing_reads_are_said(name: str, says: str) -> None:
    (warning,) = check_environment([], {name: "1", "PAGODA_PORT": "80", "HOME": "/", "PATH": "x"})
    assert name in warning
    assert says in warning


@pytest.mark.parametrize(
    "name",
    [
        "PAGODA_API_KEYS", "PAGODA_APIKEY", "PAGODA_KEY", "PAGODA_API_TOKEN", "PAGODA_SECRET", "pagoda_api_key",
        "PAGODA_ADMIN_KEYS", "PAGODA_API_KYE", "PAGODA_PASSWORD", "PAGODA_AUTH", "PAGODA_SERVER_API_KEY",
    ],
)  # fmt: skip
def test_a_misspelt_key_opens_no_server(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_environment([], {name: "secret"})


@pytest.mark.parametrize(
    "name",
    ["PAGODA_API_KEY", "PAGODA_CACHE", "PAGODA_CONFIG", "PAGODA_DEBUG", "PAGODA_BENCH_RUNS", "PAGODA_CHAT_API_KEY",
     "PAGODA_SERVICE_HOST", "PAGODA_SERVICE_PORT_HTTP", "PAGODA_PORT_8000_TCP_ADDR", "PAGODA_PORT"],
)  # fmt: skip
def test_variables_that_something_reads(name: str) -> None:
    assert check_environment([], {name: "x"}) == []


@pytest.mark.parametrize("value", ["", " ", "a,,b", ","])
def test_a_key_that_is_empty_opens_no_server(value: str, empty_folder: Path) -> None:
    """As `PAGODA_API_KEY=${KEY}` is where KEY is not set."""
    with pytest.raises(ConfigError, match="PAGODA_API_KEY is empty"):
        load_settings(ServerSettings, environ={"PAGODA_API_KEY": value})
    with pytest.raises(ConfigError, match="--api-key is empty"):
        load_settings(ServerSettings, {"api_keys": [value]}, environ={})
    with pytest.raises(ConfigError, match="api-key is empty"):
        load_settings(ServerSettings, config=write(empty_folder, f"api-key = {value!r}"), environ={})
