"""`pagoda cache stats`, `search`, `show` and `delete`: looking into a store, also while a server uses it."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from typing import Annotated, Any

import typer

from pagoda.cache.entry import Entry
from pagoda.cache.store import Selector, Store
from pagoda.cache.stores import open_store
from pagoda.cache_settings import CacheSettings
from pagoda.cli.options import with_settings
from pagoda.config import cache_dir
from pagoda.crypt import Cipher
from pagoda.errors import ConfigError

SHOWN_CHARS = 100
OF_STORES = ("cache_store", "cache_key")  # settings that say where entries are, and in which key


def opened(settings: CacheSettings) -> Store:
    """The store that the settings name; SQLite's own where they name none. Raises ConfigError, StoreError."""
    cipher = None if settings.cache_key is None else Cipher(settings.cache_key)
    address = settings.cache_store or "sqlite"
    if address == "memory":
        raise ConfigError("a cache in memory is seen by its server alone")
    return open_store(address, cache_dir() / "answers", cipher)


@partial(with_settings, only=OF_STORES)
def stats(
    settings: CacheSettings, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Count the entries of a store by model and tenant."""
    store, now = opened(settings), time.time()
    models: Counter[str] = Counter()
    tenants: Counter[str] = Counter()
    expired, tokens, oldest = 0, 0, now
    for entry in store.entries(Selector()):
        models[entry.model] += 1
        tenants[entry.tenant] += 1
        expired += not entry.is_alive(now)
        tokens += entry.answer.completion_tokens
        oldest = min(oldest, entry.created)
    store.close()
    shape: dict[str, Any] = {
        "entries": models.total(),
        "expired": expired,
        "tokens": tokens,
        "oldest_s": round(now - oldest),
        "models": dict(models),
        "tenants": dict(tenants),
    }
    if as_json:
        typer.echo(json.dumps(shape))
        return
    typer.echo(f"{_entries(models.total())}, {expired} of them expired; {tokens} tokens of answers")
    for what, counts in (("model", models), ("tenant", tenants)):
        for name, count in counts.most_common():
            typer.echo(f"  {what} {name or '(none)'}: {count}")


@partial(with_settings, only=(*OF_STORES, "cache_embedder"))
def search(
    settings: CacheSettings,
    text: Annotated[str, typer.Argument(help="A question.")],
    count: Annotated[int, typer.Option(help="Entries shown.", min=1)] = 5,
) -> None:
    """Show the kept questions that are nearest to a text, in all partitions."""
    from pagoda.server.cache_parts import load_cache_embedder

    embedder = load_cache_embedder(settings.cache_embedder)
    vector = embedder.embed([text])[0]
    store = opened(settings)
    near = [
        (float(entry.vector @ vector), entry)
        for entry in store.entries(Selector())
        if entry.vector is not None and entry.space == embedder.digest
    ]
    for similarity, entry in sorted(near, key=lambda pair: -pair[0])[:count]:
        typer.echo(f"{similarity:.3f}  {entry.id}  {_short(entry.question)}")
    store.close()


@partial(with_settings, only=OF_STORES)
def show(settings: CacheSettings, id: Annotated[str, typer.Argument(help="Of the entry, as headers give it.")]) -> None:
    """Show one entry: question, answer, and how long it is kept."""
    store = opened(settings)
    entry = next(store.entries(Selector(id=id)), None)
    store.close()
    if entry is None:
        raise ConfigError(f"there is no entry {id!r}; `pagoda cache search` finds some")
    typer.echo(json.dumps(_shape(entry), ensure_ascii=False, indent=2))


@partial(with_settings, only=OF_STORES)
def delete(
    settings: CacheSettings,
    id: Annotated[str | None, typer.Option(help="Id of the entry.")] = None,
    tag: Annotated[str | None, typer.Option(help="Entries with this tag.")] = None,
    of_model: Annotated[str | None, typer.Option(help="Entries of this model.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Entries of this tenant.")] = None,
    older_than: Annotated[float | None, typer.Option(help="Entries older than so many seconds.", min=0)] = None,
    all_entries: Annotated[bool, typer.Option("--all", help="All entries.")] = False,
) -> None:
    """Remove the entries for which everything that is said holds."""
    before = None if older_than is None else time.time() - older_than
    selector = Selector(id=id, tag=tag, model=of_model, tenant=tenant, created_before=before)
    if selector == Selector() and not all_entries:
        raise ConfigError("say which entries: --id, --tag, --of-model, --tenant, --older-than or --all")
    store = opened(settings)
    typer.echo(f"{_entries(store.delete(selector))} removed")
    store.close()


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"


def _shape(entry: Entry) -> dict[str, Any]:
    shape = asdict(entry)
    del shape["vector"], shape["answer"]
    times = {
        name: datetime.fromtimestamp(shape[name], timezone.utc).isoformat(timespec="seconds")
        for name in ("created", "expires")
    }
    return shape | times | {"answer": entry.answer.text, "tokens": entry.answer.completion_tokens}
