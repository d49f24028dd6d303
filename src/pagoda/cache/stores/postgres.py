"""Entries in PostgreSQL, their vectors in tables of their own, one a space, that pgvector searches.

A small partition is read whole, which finds all that there is. In a large one HNSW is searched, and goes on searching
(`hnsw.iterative_scan`) where the first rows that it finds are of other partitions or dead; after sweeps the table of
vectors is vacuumed, since dead rows stand in the index until then. Nothing that a hit changes stands beside a vector.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pagoda.cache.entry import Entry, digest
from pagoda.cache.row import COLUMNS, Dialect, entry_of, row_of, where_of
from pagoda.cache.store import Selector, StoreError
from pagoda.crypt import Cipher
from pagoda.errors import ConfigError
from pagoda.types import FloatArray

WHOLE_UP_TO = 1000  # entries of a partition
DELETED_AT_ONCE = 500  # by one statement, whose time is bounded
VACUUM_AFTER = 1000  # vectors removed
TIMEOUT_S = 2
COUNTS_KEPT = 4096  # partitions whose size is remembered
SQL = Dialect(
    parameter="%({})s",
    has_tag="tags ? %(tag)s",
    all_but="SELECT key FROM pagoda_entries ORDER BY created DESC, key OFFSET %(all_but)s",
)
SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS pagoda_entries (
    key text PRIMARY KEY, id text NOT NULL, partition text NOT NULL, space text NOT NULL, tenant text NOT NULL,
    model text NOT NULL, tags jsonb NOT NULL, created double precision NOT NULL, expires double precision NOT NULL,
    ttl double precision NOT NULL, sliding integer NOT NULL, body bytea NOT NULL, vector bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS pagoda_entries_id ON pagoda_entries (id);
CREATE INDEX IF NOT EXISTS pagoda_entries_created ON pagoda_entries (created);
CREATE INDEX IF NOT EXISTS pagoda_entries_expires ON pagoda_entries (expires);
"""
VECTORS = """
CREATE TABLE IF NOT EXISTS {table} (
    key text PRIMARY KEY REFERENCES pagoda_entries ON DELETE CASCADE, partition text NOT NULL,
    embedding vector({width}) NOT NULL
);
CREATE INDEX IF NOT EXISTS {table}_partition ON {table} (partition);
CREATE INDEX IF NOT EXISTS {table}_hnsw ON {table} USING hnsw (embedding vector_ip_ops);
"""
LIST = ", ".join("tags::text" if column == "tags" else column for column in COLUMNS)
PUT = f"""
INSERT INTO pagoda_entries ({", ".join(COLUMNS)}) VALUES ({", ".join(f"%({column})s" for column in COLUMNS)})
ON CONFLICT (key) DO UPDATE SET {", ".join(f"{column} = EXCLUDED.{column}" for column in COLUMNS[1:])}
"""
LOCK = 7208711  # an advisory lock: tables are made by one at a time


class PostgresStore:
    def __init__(self, address: str, cipher: Cipher | None = None) -> None:
        """Raises ConfigError without the package, StoreError where no PostgreSQL with pgvector answers."""
        try:
            import psycopg
        except ImportError:
            raise ConfigError("--cache postgresql://… needs psycopg: pip install 'pagoda-llm[cache]'") from None
        self._psycopg: Any = psycopg
        self._address = address
        self._cipher = cipher
        self._local = threading.local()
        self._connections: list[Any] = []
        self._made: set[str] = set()  # tables of vectors that are there
        self._counts: dict[tuple[str, str], int] = {}  # of partitions, at most as many as there are
        self._removed = 0
        with self._errors():
            self._make(SCHEMA)
            self._tune(self._db())

    def put(self, entry: Entry, *, renew: bool = False) -> None:
        with self._errors():
            db = self._db()
            if renew:
                db.execute("UPDATE pagoda_entries SET expires = %s WHERE key = %s", (entry.expires, entry.key))
                return
            table = None if entry.vector is None else self._table(entry.space, len(entry.vector))
            with db.transaction():
                old = db.execute("SELECT space FROM pagoda_entries WHERE key = %s", (entry.key,)).fetchone()
                db.execute(PUT, row_of(entry, self._cipher))
                if old is not None and old[0] != entry.space:
                    self._drop_vector(db, old[0], entry.key)
                if table is not None and entry.vector is not None:
                    db.execute(
                        f"INSERT INTO {table} VALUES (%s, %s, %s::vector) ON CONFLICT (key) DO UPDATE SET "
                        "partition = EXCLUDED.partition, embedding = EXCLUDED.embedding",
                        (entry.key, entry.partition, _literal(entry.vector)),
                    )
            place = (entry.partition, entry.space)
            if place in self._counts:
                self._counts[place] += 1

    def entries(self, selector: Selector) -> Iterator[Entry]:
        where, values = where_of(selector, SQL)
        with self._errors():
            keys = self._db().execute(f"SELECT key FROM pagoda_entries {where} ORDER BY created DESC, key", values)
            names = [key for (key,) in keys.fetchall()]
        for start in range(0, len(names), 256):
            yield from self._read(names[start : start + 256])

    def count(self, selector: Selector) -> int:
        where, values = where_of(selector, SQL)
        with self._errors():
            return int(self._db().execute(f"SELECT count(*) FROM pagoda_entries {where}", values).fetchone()[0])

    def nearest(self, partition: str, space: str, vector: FloatArray, count: int) -> list[tuple[float, Entry]]:
        with self._errors():
            db = self._db()
            table = self._table(space, len(vector))
            values = {"partition": partition, "vector": _literal(vector), "count": count}
            own = f"SELECT key FROM {table} WHERE partition = %(partition)s"
            if self._count(db, table, partition, space) <= WHOLE_UP_TO:
                whole = f"SELECT key, embedding FROM {table} WHERE partition = %(partition)s"
                own = f"WITH own AS MATERIALIZED ({whole}) SELECT key FROM own"
            found = db.execute(f"{own} ORDER BY embedding <#> %(vector)s::vector LIMIT %(count)s", values).fetchall()
        entries = self._read([key for (key,) in found])
        near = [(float(e.vector @ vector), e) for e in entries if e.vector is not None and e.partition == partition]
        return sorted(near, key=lambda pair: -pair[0])

    def delete(self, selector: Selector) -> int:
        where, values = where_of(selector, SQL)
        with self._errors():
            db, removed = self._db(), 0
            some = f"SELECT key FROM pagoda_entries {where} LIMIT {DELETED_AT_ONCE}"
            while True:
                rows = db.execute(
                    f"DELETE FROM pagoda_entries WHERE key IN ({some}) RETURNING partition, space", values
                )
                places = rows.fetchall()
                for place in places:
                    self._counts.pop(place, None)
                removed += len(places)
                if len(places) < DELETED_AT_ONCE:
                    break
            self._removed += removed
            if self._removed >= VACUUM_AFTER:
                self._removed = 0
                for table in list(self._made):
                    db.execute("SET statement_timeout = 0")
                    db.execute(f"VACUUM {table}")
                    db.execute(f"SET statement_timeout = {TIMEOUT_S * 1000}")
        return removed

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _read(self, keys: list[str]) -> list[Entry]:
        """The entries of these keys, in their order. What is damaged is removed."""
        if not keys:
            return []
        with self._errors():
            db = self._db()
            rows = db.execute(f"SELECT {LIST} FROM pagoda_entries WHERE key = ANY(%s)", (keys,), binary=True).fetchall()
            read = {row[0]: entry_of(row, self._cipher) for row in rows}
            for key in [key for key, entry in read.items() if entry is None]:
                db.execute("DELETE FROM pagoda_entries WHERE key = %s", (key,))
        return [entry for key in keys if (entry := read.get(key)) is not None]

    def _count(self, db: Any, table: str, partition: str, space: str) -> int:
        """Entries of the partition, more or less: other processes add some, too."""
        place = (partition, space)
        if place not in self._counts:
            if len(self._counts) >= COUNTS_KEPT:
                self._counts.clear()
            limited = f"SELECT 1 FROM {table} WHERE partition = %s LIMIT {WHOLE_UP_TO + 1}"
            (self._counts[place],) = db.execute(f"SELECT count(*) FROM ({limited}) AS own", (partition,)).fetchone()
        return self._counts[place]

    def _table(self, space: str, width: int) -> str:
        """The table of a space's vectors, which is made where it is not there."""
        table = _name(space)
        if table not in self._made:
            self._make(VECTORS.format(table=table, width=width))
            self._made.add(table)
        return table

    def _drop_vector(self, db: Any, space: str, key: str) -> None:
        if db.execute("SELECT to_regclass(%s)", (_name(space),)).fetchone()[0] is not None:
            db.execute(f"DELETE FROM {_name(space)} WHERE key = %s", (key,))

    def _make(self, statements: str) -> None:
        db = self._db()
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            for statement in statements.split(";"):
                if statement.strip():
                    db.execute(statement)

    def _db(self) -> Any:
        """This thread's connection."""
        db = getattr(self._local, "db", None)
        if db is None or db.closed:
            options = f"-c statement_timeout={TIMEOUT_S * 1000} -c client_min_messages=warning"
            db = self._psycopg.connect(self._address, autocommit=True, connect_timeout=TIMEOUT_S, options=options)
            if self._made or db.execute("SELECT to_regtype('vector')").fetchone()[0] is not None:
                self._tune(db)
            self._local.db = db
            self._connections = [open_ for open_ in self._connections if not open_.closed] + [db]
        return db

    @staticmethod
    def _tune(db: Any) -> None:
        """Settings of searches. pgvector's are there once its library is loaded, which any vector does."""
        db.execute("SELECT '[1]'::vector")
        db.execute("SET hnsw.iterative_scan = strict_order")
        db.execute("SET hnsw.ef_search = 60")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (self._psycopg.OperationalError, OSError) as error:
            raise StoreError(f"PostgreSQL: {error}") from error
        except self._psycopg.Error as error:  # its text may quote rows, which are nobody else's to read
            raise StoreError(f"PostgreSQL: {type(error).__name__}") from None


def _name(space: str) -> str:
    return f"pagoda_vectors_{digest([space])[:16]}"


def _literal(vector: FloatArray) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"
