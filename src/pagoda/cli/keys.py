"""`pagoda keys create|list|revoke|rotate`: the keys of clients and what each may use, in the file of --keys-file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pagoda.cli.options import with_settings
from pagoda.config import KeysFile
from pagoda.errors import ConfigError
from pagoda.server.key_store import Key, KeyStore, Limits
from pagoda.settings import Setting, Settings

Name = Annotated[str, typer.Argument(help="Name of the key: the tenant in logs and series.")]


@dataclass(frozen=True, slots=True)
class FileSettings(Settings):
    """What these verbs and `pagoda serve` have in common."""

    keys_file: KeysFile = None


@dataclass(frozen=True, slots=True)
class LimitSettings(Settings):
    """Flags of `pagoda keys create`."""

    table = "keys"

    requests_per_minute: Annotated[int | None, Setting("Requests a minute.", minimum=1)] = None
    tokens_per_minute: Annotated[int | None, Setting("Tokens of prompts and answers a minute.", minimum=1)] = None
    tokens_per_day: Annotated[int | None, Setting("Tokens a day (UTC).", minimum=1)] = None
    tokens_per_month: Annotated[int | None, Setting("Tokens a month (UTC).", minimum=1)] = None
    usd_per_day: Annotated[float | None, Setting("Dollars a day, where the machine has a price.", minimum=0)] = None
    usd_per_month: Annotated[float | None, Setting("Dollars a month.", minimum=0)] = None
    concurrent_requests: Annotated[int | None, Setting("Requests at once.", minimum=1)] = None
    models: Annotated[
        tuple[str, ...], Setting("Models and adapters that it may ask for; repeat.", flag="allow-model")
    ] = ()


@with_settings
def create(name: Name, file: FileSettings, limits: LimitSettings) -> None:
    """Make a key and print it: it is shown only now, and the file holds its hash alone."""
    values = {field.name: getattr(limits, field.name) for field in fields(Limits)}
    with _store(file) as store:
        typer.echo(store.create(name, Limits(**values | {"models": limits.models or None})))


@with_settings
def rotate(name: Name, file: FileSettings) -> None:
    """Give a key a new secret and print it; the old one is worth nothing from now on. Limits and use stay."""
    with _store(file) as store:
        typer.echo(store.rotate(name))


@with_settings
def revoke(name: Name, file: FileSettings) -> None:
    """Make a key worth nothing, from the next request on."""
    with _store(file) as store:
        store.revoke(name)


@with_settings
def show(file: FileSettings, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the keys, their limits and what they have used today and this month."""
    with _store(file) as store:
        now = time.time()
        used = {key.name: [store.used(key.name, period, now) for period in ("day", "month")] for key in store.all()}
        if as_json:
            rows = [
                asdict(key) | {"day": asdict(used[key.name][0]), "month": asdict(used[key.name][1])}
                for key in store.all()
            ]
            typer.echo(json.dumps(rows, indent=2))
            return
        table = Table("key", "state", "limits", "tokens today", "this month", "USD this month")
        for key in store.all():
            day, month = used[key.name]
            state = "active" if key.revoked is None else "revoked"
            table.add_row(key.name, state, _limits(key), f"{day.tokens:,}", f"{month.tokens:,}", f"{month.usd:.4f}")
        Console(highlight=False).print(table)


def _limits(key: Key) -> str:
    known = asdict(key.limits)
    return (
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items() if value is not None) or "none"
    )


@contextmanager
def _store(file: FileSettings) -> Iterator[KeyStore]:
    if file.keys_file is None:
        raise ConfigError("--keys-file is missing: the file that holds the keys, the same that pagoda serve is given")
    path: Path = file.keys_file
    with closing(KeyStore(path)) as store:
        yield store
