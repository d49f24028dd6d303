"""API keys and what each has used, in a SQLite file, so that a restart forgets nothing.

A key is 256 random bits; the file holds its SHA-256 alone, so whoever reads the file can use no key of it. Use is
counted in windows of a minute, a day and a month (UTC), a row for each key and kind of window.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
import sqlite3
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pagoda.errors import ConfigError

PREFIX = "pgd-"
Period = Literal["minute", "day", "month"]
PERIODS: tuple[Period, ...] = ("minute", "day", "month")
MINUTE_S, DAY_S = 60, 86400
TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    name TEXT PRIMARY KEY, digest BLOB UNIQUE NOT NULL, created REAL NOT NULL, revoked REAL, limits TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS used (
    name TEXT NOT NULL, period TEXT NOT NULL, start INTEGER NOT NULL,
    requests INTEGER NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, PRIMARY KEY (name, period));
"""
ADD = """
INSERT INTO used VALUES (:name, :period, :start, :requests, :tokens, :usd) ON CONFLICT (name, period) DO UPDATE SET
    requests = CASE WHEN start = :start THEN requests ELSE 0 END + :requests,
    tokens = CASE WHEN start = :start THEN tokens ELSE 0 END + :tokens,
    usd = CASE WHEN start = :start THEN usd ELSE 0 END + :usd,
    start = :start
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None
    concurrent_requests: int | None = None
    models: tuple[str, ...] | None = None  # and adapters, by the names that clients use


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key, without the key itself."""

    name: str  # of the tenant
    created: float  # seconds since the epoch
    revoked: float | None
    limits: Limits


@dataclass(frozen=True, slots=True)
class Used:
    """What a key has used in the present window."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0


class KeyStore:
    """The file. For one thread; several processes may have it open."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the file cannot be opened or is no such file."""
        try:
            with ExitStack() as on_error:
                path.touch(mode=0o600)  # before SQLite makes it, and its log beside it, readable to others
                self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
                on_error.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(TABLES)
                path.chmod(0o600)
                on_error.pop_all()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"--keys-file {path}: {error}") from None

    # Keys

    def create(self, name: str, limits: Limits) -> str:
        """A new key, which is shown only now. ConfigError: there is one of that name."""
        key = PREFIX + secrets.token_urlsafe(32)
        row = (name, digest(key.encode()), time.time(), json.dumps(asdict(limits)))
        try:
            self._db.execute("INSERT INTO keys VALUES (?, ?, ?, NULL, ?)", row)
        except sqlite3.IntegrityError:
            raise ConfigError(f"there is a key called {name!r} already: rotate it, or choose another name") from None
        return key

    def rotate(self, name: str) -> str:
        """A new key in place of the old one, which is worth nothing from now on. What was used stays used."""
        self.key(name)
        key = PREFIX + secrets.token_urlsafe(32)
        self._db.execute("UPDATE keys SET digest = ?, revoked = NULL WHERE name = ?", (digest(key.encode()), name))
        return key

    def revoke(self, name: str) -> None:
        """The key is worth nothing from now on."""
        self.key(name)
        self._db.execute("UPDATE keys SET revoked = ? WHERE name = ?", (time.time(), name))

    def all(self) -> list[Key]:
        """All of them, by name."""
        found = self._db.execute("SELECT name, created, revoked, limits FROM keys ORDER BY name")
        return [_key(*row) for row in found]

    def key(self, name: str) -> Key:
        """ConfigError: there is none of that name."""
        row = self._db.execute("SELECT name, created, revoked, limits FROM keys WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise ConfigError(f"there is no key called {name!r}: pagoda keys list shows them")
        return _key(*row)

    def limits(self, name: str) -> Limits | None:
        """What the key of that name may use; None: there is none of that name."""
        row = self._db.execute("SELECT name, created, revoked, limits FROM keys WHERE name = ?", (name,)).fetchone()
        return None if row is None else _key(*row).limits

    def find(self, given: bytes) -> Key | None:
        """The key with that digest that is not revoked. To look a digest up tells nobody the key."""
        query = "SELECT name, created, revoked, limits FROM keys WHERE digest = ? AND revoked IS NULL"
        row = self._db.execute(query, (given,)).fetchone()
        return None if row is None else _key(*row)

    # Use

    def used(self, name: str, period: Period, now: float) -> Used:
        """In the window that `now` is in."""
        query = "SELECT requests, tokens, usd FROM used WHERE name = ? AND period = ? AND start = ?"
        row = self._db.execute(query, (name, period, window(period, now)[0])).fetchone()
        return Used() if row is None else Used(*row)

    def add(self, name: str, now: float, *, requests: int = 0, tokens: int = 0, usd: float = 0.0) -> None:
        """Something was used."""
        self._db.execute("BEGIN IMMEDIATE")
        for period in PERIODS:
            amounts = {"requests": requests, "tokens": tokens, "usd": usd}
            self._db.execute(ADD, {"name": name, "period": period, "start": window(period, now)[0]} | amounts)
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


def digest(key: bytes) -> bytes:
    """What the file holds of a key. Fast is enough: nobody guesses 256 random bits."""
    return hashlib.sha256(key).digest()


def window(period: Period, now: float) -> tuple[int, int]:
    """First second of the window that `now` is in, and of the next one (seconds since the epoch, UTC)."""
    if period != "month":
        size = MINUTE_S if period == "minute" else DAY_S
        start = int(now // size) * size
        return start, start + size
    first = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    following = (first + datetime.timedelta(days=32)).replace(day=1)
    return int(first.timestamp()), int(following.timestamp())


def _key(name: str, created: float, revoked: float | None, limits: str) -> Key:
    values = json.loads(limits)
    models = values.pop("models")
    return Key(name, created, revoked, Limits(**values, models=None if models is None else tuple(models)))
