"""Entries in Redis 8: a hash each, and a vector set for each partition and space.

    PREFIX:e:KEY                    the entry
    PREFIX:i:ID                     its key
    PREFIX:created, PREFIX:expires  sorted sets of keys
    PREFIX:v:PARTITION:SPACE        the vector set

A set holds one partition alone, so that no search needs a FILTER: Redis' finds only some of what matches. Vector sets
know no lifetime of an element; entries end by `delete`. Scores are computed here, from the vectors as they were
written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pagoda.cache.entry import Entry
from pagoda.cache.row import COLUMNS, entry_of, row_of
from pagoda.cache.store import Selector, StoreError
from pagoda.crypt import Cipher
from pagoda.errors import ConfigError
from pagoda.types import FloatArray

PREFIX = "pagoda"
PAGE = 256
DELETED_AT_ONCE = 16  # a vector set is slow to let go of an element, and nobody else is served meanwhile
TIMEOUT_S = 1.0
# KEYS: entry, expires · ARGV: key, its end. → whether the entry was there
RENEW = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'expires', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return 1
"""


class RedisStore:
    def __init__(self, address: str, cipher: Cipher | None = None) -> None:
        """Raises ConfigError without the package and for an address that none has, StoreError where no Redis with
        vector sets answers."""
        try:
            import redis
        except ImportError:
            raise ConfigError("--cache redis://… needs the package redis: pip install 'pagoda-llm[cache]'") from None
        self._error: type[Exception] = redis.RedisError
        self._cipher = cipher
        limits = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
        try:
            self._redis: Any = redis.Redis.from_url(address, **limits)
        except ValueError as error:
            raise ConfigError(f"--cache {address!r} is not redis://HOST[:PORT][/DB]: {error}") from None
        with self._errors():
            try:
                self._redis.execute_command("VCARD", f"{PREFIX}:none")
            except redis.ResponseError as error:
                if "unknown command" in str(error):
                    raise StoreError("this Redis has no vector sets: version 8 or later is needed") from None
                raise
            except redis.ConnectionError as error:
                raise StoreError(f"no Redis answers: {error} Start one, or see to the address of --cache") from None
            self._renew: Any = self._redis.register_script(RENEW)

    def put(self, entry: Entry, *, renew: bool = False) -> None:
        with self._errors():
            if renew:
                self._renew(keys=[_entry(entry.key), f"{PREFIX}:expires"], args=[entry.key, entry.expires])
                return
            old = self._redis.hmget(_entry(entry.key), "partition", "space")
            with self._redis.pipeline(transaction=True) as pipe:
                if old[0] is not None and (old[0], old[1]) != (entry.partition.encode(), entry.space.encode()):
                    pipe.execute_command("VREM", _set(old[0].decode(), old[1].decode()), entry.key)
                pipe.hset(_entry(entry.key), mapping=row_of(entry, self._cipher))
                pipe.set(f"{PREFIX}:i:{entry.id}", entry.key)
                pipe.zadd(f"{PREFIX}:created", {entry.key: entry.created})
                pipe.zadd(f"{PREFIX}:expires", {entry.key: entry.expires})
                if entry.vector is not None:
                    blob = entry.vector.astype("<f4").tobytes()
                    pipe.execute_command("VADD", _set(entry.partition, entry.space), "FP32", blob, entry.key)
                pipe.execute()

    def entries(self, selector: Selector) -> Iterator[Entry]:
        for keys in self._pages(selector):
            for _, entry in self._read(keys):
                if entry is not None and selector.matches(entry):
                    yield entry

    def count(self, selector: Selector) -> int:
        if selector == Selector():
            with self._errors():
                return int(self._redis.zcard(f"{PREFIX}:created"))
        return sum(1 for _ in self.entries(selector))

    def nearest(self, partition: str, space: str, vector: FloatArray, count: int) -> list[tuple[float, Entry]]:
        with self._errors():
            blob = vector.astype("<f4").tobytes()
            found = self._redis.execute_command("VSIM", _set(partition, space), "FP32", blob, "COUNT", count)
        near = []
        for key, entry in self._read([key.decode() for key in found]):
            if entry is None:
                with self._errors():
                    self._redis.execute_command("VREM", _set(partition, space), key)
            elif entry.vector is not None and (entry.partition, entry.space) == (partition, space):
                near.append((float(entry.vector @ vector), entry))
        return sorted(near, key=lambda pair: -pair[0])

    def delete(self, selector: Selector) -> int:
        if selector == Selector():
            return self._delete_all()
        removed = 0
        for keys in self._pages(selector, DELETED_AT_ONCE):
            found = [entry for _, entry in self._read(keys) if entry is not None and selector.matches(entry)]
            with self._errors(), self._redis.pipeline(transaction=True) as pipe:
                for entry in found:
                    self._remove(pipe, entry)
                pipe.execute()
            removed += len(found)
        return removed

    def _delete_all(self) -> int:
        """Vector sets go as wholes: an element that leaves one has its neighbours joined to others."""
        with self._errors():
            count = int(self._redis.zcard(f"{PREFIX}:created"))
            names: list[bytes] = []
            for name in self._redis.scan_iter(f"{PREFIX}:*", count=PAGE):
                names.append(name)
                if len(names) == PAGE:
                    self._redis.unlink(*names)
                    names.clear()
            if names:
                self._redis.unlink(*names)
        return count

    def close(self) -> None:
        self._redis.close()

    def _pages(self, selector: Selector, size: int = PAGE) -> Iterator[list[str]]:
        """Keys of the entries among which those of the selector are, newest first."""
        with self._errors():
            if selector.key is not None:
                yield [selector.key]
                return
            if selector.id is not None:
                key = self._redis.get(f"{PREFIX}:i:{selector.id}")
                yield [] if key is None else [key.decode()]
                return
            if selector.expired_at is not None:
                keys = self._redis.zrangebyscore(f"{PREFIX}:expires", "-inf", selector.expired_at)
                created = self._redis.zmscore(f"{PREFIX}:created", keys) if keys else []
                keys = [key for _, key in sorted(zip(created, keys, strict=True), reverse=True)]
            else:
                keys = self._redis.zrevrange(f"{PREFIX}:created", selector.all_but or 0, -1)
        for start in range(0, len(keys), size):
            yield [key.decode() for key in keys[start : start + size]]

    def _read(self, keys: list[str]) -> list[tuple[str, Entry | None]]:
        """The entries of these keys. What is damaged is removed."""
        if not keys:
            return []
        with self._errors():
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(_entry(key), *COLUMNS)
                rows = pipe.execute()
            read = [(key, entry_of([_text(v, c) for v, c in zip(row, COLUMNS, strict=True)], self._cipher))
                    for key, row in zip(keys, rows, strict=True)]  # fmt: skip
            for key in [key for key, entry in read if entry is None]:
                self._redis.delete(_entry(key))
                self._redis.zrem(f"{PREFIX}:created", key)
                self._redis.zrem(f"{PREFIX}:expires", key)
        return read

    @staticmethod
    def _remove(pipe: Any, entry: Entry) -> None:
        pipe.delete(_entry(entry.key), f"{PREFIX}:i:{entry.id}")
        pipe.zrem(f"{PREFIX}:created", entry.key)
        pipe.zrem(f"{PREFIX}:expires", entry.key)
        pipe.execute_command("VREM", _set(entry.partition, entry.space), entry.key)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            raise StoreError(f"Redis: {error}") from error


def _entry(key: str) -> str:
    return f"{PREFIX}:e:{key}"


def _set(partition: str, space: str) -> str:
    return f"{PREFIX}:v:{partition}:{space}"


def _text(value: bytes | None, column: str) -> Any:
    """A field as `row_of` made it, as far as `entry_of` cares."""
    return value if value is None or column in ("body", "vector") else value.decode("utf-8", "replace")
