"""Entries in one SQLite file; their vectors also in memory, where they are searched.

The memory is filled partition by partition, when one is asked for first. Several processes may share a file: rows that
another one has written since are read before each search; rows that it has removed are missed when they are found.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pagoda.cache.entry import Entry
from pagoda.cache.index import Indexes
from pagoda.cache.row import COLUMNS, Dialect, entry_of, row_of, vector_of, vectors_of, where_of
from pagoda.cache.store import Selector, StoreError
from pagoda.crypt import Cipher
from pagoda.types import FloatArray

VERSION = 1
SQL = Dialect(
    parameter=":{}",
    has_tag="EXISTS (SELECT 1 FROM json_each(tags) WHERE value = :tag)",
    all_but="SELECT key FROM entries ORDER BY created DESC, key LIMIT -1 OFFSET :all_but",
)
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- rows are written in this order
    key TEXT NOT NULL UNIQUE, id TEXT NOT NULL, partition TEXT NOT NULL, space TEXT NOT NULL, tenant TEXT NOT NULL,
    model TEXT NOT NULL, tags TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, ttl REAL NOT NULL,
    sliding INTEGER NOT NULL, body BLOB NOT NULL, vector BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_id ON entries (id);
CREATE INDEX IF NOT EXISTS entries_partition ON entries (partition, space);
CREATE INDEX IF NOT EXISTS entries_created ON entries (created);
CREATE INDEX IF NOT EXISTS entries_expires ON entries (expires);
"""
LIST = ", ".join(COLUMNS)
PUT = f"INSERT OR REPLACE INTO entries ({LIST}) VALUES ({', '.join(':' + column for column in COLUMNS)})"
BUSY_S = 5.0  # for a writer of another process


class SqliteStore:
    def __init__(self, path: Path, cipher: Cipher | None = None) -> None:
        """Raises StoreError when the file cannot be opened, or is none of ours."""
        self.path = path
        self._cipher = cipher
        self._indexes = Indexes()
        self._lock = threading.RLock()
        self._known: set[tuple[str, str]] = set()  # partitions and spaces whose vectors are in memory
        with self._errors(), ExitStack() as on_error:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            on_error.callback(self._db.close)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise StoreError(f"{path} was written by another version of Pagoda ({version}): remove it")
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version={VERSION}")
            self._seen_changes, self._seen_row = self._changes(), self._last_row()
            on_error.pop_all()

    def put(self, entry: Entry, *, renew: bool = False) -> None:
        row = row_of(entry, self._cipher)
        with self._lock, self._errors():
            self._look()
            old = self._db.execute("SELECT partition, space FROM entries WHERE key = ?", (entry.key,)).fetchone()
            if old is None and renew:
                return
            self._db.execute(PUT, row)
            if old is not None:
                self._indexes.remove(old[0], old[1], entry.key)
            if entry.vector is not None and (entry.partition, entry.space) in self._known:
                self._indexes.put(entry.partition, entry.space, entry.key, entry.vector)

    def entries(self, selector: Selector) -> Iterator[Entry]:
        where, values = where_of(selector, SQL)
        with self._lock, self._errors():
            keys = self._db.execute(f"SELECT key FROM entries {where} ORDER BY created DESC, key", values).fetchall()
        for (key,) in keys:  # one at a time: answers may be more than fits in memory
            if (entry := self._entry(key)) is not None:
                yield entry

    def count(self, selector: Selector) -> int:
        where, values = where_of(selector, SQL)
        with self._lock, self._errors():
            (count,) = self._db.execute(f"SELECT count(*) FROM entries {where}", values).fetchone()
        return int(count)

    def nearest(self, partition: str, space: str, vector: FloatArray, count: int) -> list[tuple[float, Entry]]:
        with self._lock, self._errors():
            self._look()
            if (partition, space) not in self._known:
                self._read_vectors(partition, space)
            found = self._indexes.nearest(partition, space, vector, count)
            pairs = [(score, self._entry(key)) for score, key in found]
            for (_, key), (_, entry) in zip(found, pairs, strict=True):
                if entry is None:  # another process has removed it
                    self._indexes.remove(partition, space, key)
        return [(score, entry) for score, entry in pairs if entry is not None and entry.partition == partition]

    def delete(self, selector: Selector) -> int:
        where, values = where_of(selector, SQL)
        with self._lock, self._errors():
            rows = self._db.execute(f"DELETE FROM entries {where} RETURNING partition, space, key", values).fetchall()
            for row in rows:
                self._indexes.remove(*row)
        return len(rows)

    def close(self) -> None:
        with self._lock, self._errors():
            self._db.close()

    def _entry(self, key: str) -> Entry | None:
        """The entry of a key. A damaged row is removed."""
        with self._lock, self._errors():
            row = self._db.execute(f"SELECT {LIST} FROM entries WHERE key = ?", (key,)).fetchone()
            entry = None if row is None else entry_of(row, self._cipher)
            if row is not None and entry is None:
                self._db.execute("DELETE FROM entries WHERE key = ?", (key,))
        return entry

    def _read_vectors(self, partition: str, space: str) -> None:
        rows = self._db.execute(
            "SELECT key, vector FROM entries WHERE partition = ? AND space = ? AND vector != x''", (partition, space)
        )
        keys, vectors = vectors_of(rows.fetchall())
        if keys:
            self._indexes.fill(partition, space, keys, vectors)
        self._known.add((partition, space))

    def _look(self) -> None:
        """Take in the vectors that other processes have written."""
        if (changes := self._changes()) == self._seen_changes:
            return
        rows = self._db.execute("SELECT partition, space, key, vector FROM entries WHERE seq > ?", (self._seen_row,))
        for partition, space, key, blob in rows.fetchall():
            if (partition, space) in self._known:
                self._index(partition, space, key, blob)
        self._seen_changes, self._seen_row = changes, self._last_row()

    def _index(self, partition: str, space: str, key: str, blob: bytes) -> None:
        vector = vector_of(blob)
        if vector is None:
            self._indexes.remove(partition, space, key)
        else:
            self._indexes.put(partition, space, key, vector)

    def _last_row(self) -> int:
        (last,) = self._db.execute("SELECT max(seq) FROM entries").fetchone()
        return int(last or 0)

    def _changes(self) -> int:
        """A number that changes when another connection has written."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}") from error
