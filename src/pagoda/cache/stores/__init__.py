"""One file a store; `open_store` picks it by its address."""

from __future__ import annotations

from pathlib import Path

from pagoda.cache.store import Store
from pagoda.crypt import Cipher
from pagoda.errors import ConfigError

ADDRESSES = "memory, sqlite, sqlite:FILE, redis://HOST[:PORT][/DB] or postgresql://USER@HOST/DATABASE"


def open_store(address: str, folder: Path, cipher: Cipher | None = None) -> Store:
    """The store at `address` (ADDRESSES); `folder` is where SQLite's file goes that has no name.

    Raises ConfigError for an address of no store, StoreError where there is none.
    """
    kind, _, rest = address.partition(":")
    if address == "memory":
        from pagoda.cache.stores.memory import MemoryStore

        return MemoryStore()
    if kind == "sqlite":
        from pagoda.cache.stores.sqlite import SqliteStore

        return SqliteStore(Path(rest).expanduser() if rest else folder / "answers.sqlite", cipher)
    if kind in ("redis", "rediss", "unix"):
        from pagoda.cache.stores.redis import RedisStore

        return RedisStore(address, cipher)
    if kind in ("postgresql", "postgres"):
        from pagoda.cache.stores.postgres import PostgresStore

        return PostgresStore(address, cipher)
    raise ConfigError(f"--cache {address!r} is none of {ADDRESSES}")
