"""What `pagoda gateway` is told of its upstreams, by flags and by [[upstreams]]."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.errors import ConfigError
from pagoda.gateway.settings import GatewaySettings, UpstreamSettings, upstreams_of


@pytest.mark.parametrize(
    ("flag", "url", "name", "weight"),
    [
        ("http://a:8000", "http://a:8000", "a:8000", 1.0),
        ("http://a:8000=2.5", "http://a:8000", "a:8000", 2.5),
        ("a:8000=3", "http://a:8000", "a:8000", 3.0),
        ("https://h/v1?x=/y", "https://h/v1?x=/y", "h", 1.0),
    ],
)
def test_a_flag_is_an_address_and_perhaps_a_weight(flag: str, url: str, name: str, weight: float) -> None:
    (found,) = upstreams_of(GatewaySettings(upstream=(flag,), upstream_key="k"), None)
    assert found == UpstreamSettings(url, name, weight, "k")


@pytest.mark.parametrize("flag", ["http://", "ftp://a", "http://a:99999", "http://a=0", "http://a=-1", "http://a=x"])
def test_a_wrong_flag_is_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match="--upstream"):
        upstreams_of(GatewaySettings(upstream=(flag,)), None)


def test_without_upstreams_there_is_no_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no upstream"):
        upstreams_of(GatewaySettings(), None)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two upstreams are called 'a'"):
        upstreams_of(GatewaySettings(upstream=("http://a", "https://a")), None)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pagoda.toml"
    path.write_text(text)
    return path


def test_tables_say_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " sk-1 ")
    path = written(
        tmp_path,
        """
        [[upstreams]]
        url = "https://api.example.com/v1"
        name = "cloud"
        key-env = "SOME_KEY"
        weight = 2
        models = { small = "gpt-4o-mini" }
        fallback = true
        [[upstreams]]
        url = "http://b"
        models = ["x", "y"]
        """,
    )
    cloud, other = upstreams_of(GatewaySettings(), path)
    assert cloud == UpstreamSettings(
        "https://api.example.com/v1", "cloud", 2.0, "sk-1", {"small": "gpt-4o-mini"}, fallback=True
    )
    assert (other.name, other.models, other.key) == ("b", {"x": "x", "y": "y"}, None)
    assert "sk-1" not in repr(cloud)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "url is missing"),
        ('url = "http://a"\nkey-env = "NOT_THERE"', "NOT_THERE, which is empty"),
        ('url = "http://a"\nkey = "sk"', "unknown key 'key'"),
        ('url = "http://a"\nfallback = 1', "not true or false"),
        ('url = "http://a"\nmodels = "x"', "models is neither"),
        ('url = "http://a"\nweight = "x"', "not a weight"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        upstreams_of(GatewaySettings(), written(tmp_path, f"[[upstreams]]\n{line}\n"))


def test_upstreams_are_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write \[\[upstreams\]\]"):
        upstreams_of(GatewaySettings(), written(tmp_path, "upstreams = 3\n"))
