"""What `pagoda gateway` is told: the servers that it stands before, and how it treats them.

    pagoda gateway http://10.0.0.1:8000 http://10.0.0.2:8000=2

An upstream of which there is more to say is a table of pagoda.toml:

    [[upstreams]]
    url = "https://api.openai.com/v1"
    key-env = "OPENAI_API_KEY"                       # the variable that holds the key
    models = { "small" = "gpt-4o-mini" }             # name that clients ask for = name there
    fallback = true                                  # asked only when no other upstream can answer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pagoda.config import load_rows, secret_from
from pagoda.errors import ConfigError
from pagoda.routing.router import Routing
from pagoda.settings import Setting, Settings
from pagoda.settings_file import refuse_unknown

ROW_KEYS = ("url", "name", "weight", "key-env", "models", "fallback")


@dataclass(frozen=True, slots=True)
class GatewaySettings(Settings):
    """How the gateway treats its upstreams."""

    table = "gateway"

    upstream: Annotated[
        tuple[str, ...],
        Setting(
            "Server to stand before: URL, or URL=WEIGHT where some should get more than others; repeat for several.",
            verbatim=True,
        ),
    ] = ()
    upstream_key: Annotated[
        str | None, Setting("Key for the upstreams that --upstream names; better in the environment.", secret=True)
    ] = None
    routing: Annotated[
        Routing,
        Setting(
            "Which upstream gets a request. affinity: one that has lately read how it begins, unless that one has more "
            "to do than the others; load: the lesser loaded of two; random."
        ),
    ] = "affinity"
    prefix_secret: Annotated[
        str | None,
        Setting(
            "Secret of gateways before the same upstreams: those that share it know what requests of each other's have "
            "left there. By default each has its own.",
            secret=True,
        ),
    ] = None
    connect_timeout: Annotated[float, Setting("Seconds that a connection may take to open.", minimum=0.01)] = 5.0
    timeout: Annotated[
        float, Setting("Seconds of silence after which an upstream's answer counts as failed.", minimum=0.1)
    ] = 600.0
    retries: Annotated[
        int, Setting("Further upstreams that are asked when one fails before its first token.", minimum=0)
    ] = 3
    health_interval: Annotated[float, Setting("Seconds between two looks at an upstream.", minimum=0.05)] = 5.0


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """One upstream. `models`: names that clients ask for → names there; empty: those that it lists itself."""

    url: str
    name: str
    weight: float = 1.0
    key: str | None = field(default=None, repr=False)
    models: Mapping[str, str] = field(default_factory=dict)
    fallback: bool = False


def upstreams_of(settings: GatewaySettings, config: Path | None) -> tuple[UpstreamSettings, ...]:
    """Those that flags name, and those of the file. Raises ConfigError where there are none, or two of one name."""
    path, rows = load_rows("upstreams", config=config)
    found = [_from_flag(text, settings.upstream_key) for text in settings.upstream]
    found += [_from_row(row, f"{path}: [[upstreams]] number {number}") for number, row in enumerate(rows, 1)]
    if not found:
        raise ConfigError("no upstream: say which server to stand before, as `pagoda gateway http://127.0.0.1:8000`")
    names = [one.name for one in found]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"two upstreams are called {name!r}: give one of them another `name`")
    return tuple(found)


def _from_flag(text: str, key: str | None) -> UpstreamSettings:
    url, has_weight, weight = text.rpartition("=")
    if not has_weight or "/" in weight:  # the = is a part of the URL
        url, weight = text, "1"
    return UpstreamSettings(_url(url, "--upstream"), _name(url), _weight(weight, f"--upstream {text}"), key)


def _from_row(row: Mapping[str, Any], where: str) -> UpstreamSettings:
    refuse_unknown(Path(where), "key", row, ROW_KEYS)
    url = _url(_text(row, "url", where), f"{where}: url")
    variable = _text(row, "key-env", where) if "key-env" in row else None
    fallback = row.get("fallback", False)
    if not isinstance(fallback, bool):
        raise ConfigError(f"{where}: fallback: {fallback!r} is not true or false")
    return UpstreamSettings(
        url,
        _text(row, "name", where) if "name" in row else _name(url),
        _weight(row.get("weight", 1.0), f"{where}: weight"),
        None if variable is None else secret_from(variable, f"{where}: key-env"),
        _models(row.get("models", {}), where),
        fallback,
    )


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {key} is {'missing' if value is None else f'{value!r}, which is no text'}")
    return value.strip()


def _url(text: str, where: str) -> str:
    url = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{where}: {text!r} is not the address of a server, such as http://127.0.0.1:8000")
    return url


def _name(url: str) -> str:
    return urlsplit(url if "://" in url else f"http://{url}").netloc.rpartition("@")[2]


def _weight(value: object, where: str) -> float:
    try:
        weight = float(str(value))
    except ValueError:
        weight = -1.0
    if not 0 < weight < 1e6:
        raise ConfigError(f"{where}: {value!r} is not a weight, which is a number above 0")
    return weight


def _models(value: object, where: str) -> dict[str, str]:
    if isinstance(value, list):
        value = {name: name for name in value if isinstance(name, str)} if all(isinstance(v, str) for v in value) else 0
    if not isinstance(value, dict) or not all(isinstance(name, str) and name for name in value.values()):
        raise ConfigError(f'{where}: models is neither a list of names nor a table such as {{ "asked" = "there" }}')
    return dict(value)
