"""An entry as the stores write it: what is searched for in columns of its own, the rest as one sealed text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from pagoda.cache.entry import Answer, Entry
from pagoda.cache.store import Selector
from pagoda.crypt import Cipher
from pagoda.types import FloatArray

COLUMNS = ("key", "id", "partition", "space", "tenant", "model", "tags", "created", "expires", "ttl", "sliding", "body",
           "vector")  # fmt: skip
UNIT_ERROR = 1e-2  # of a squared length
# What a selector states → the condition, with a place for the parameter of that name.
CONDITIONS = {"key": "key = {}", "id": "id = {}", "tenant": "tenant = {}", "model": "model = {}",
              "created_before": "created < {}", "expired_at": "expires <= {}"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where SQL differs from database to database."""

    parameter: str  # with {} for its name
    has_tag: str  # the condition that :tag is among the tags
    all_but: str  # the keys of all entries without the `all_but` newest


def where_of(selector: Selector, sql: Dialect) -> tuple[str, dict[str, Any]]:
    """A WHERE clause with named parameters, and their values."""
    if selector.all_but is not None:
        return f"WHERE key IN ({sql.all_but})", {"all_but": selector.all_but}
    conditions = {name: text.format(sql.parameter.format(name)) for name, text in CONDITIONS.items()}
    conditions["tag"] = sql.has_tag
    values = {name: value for name in conditions if (value := getattr(selector, name)) is not None}
    stated = " AND ".join(conditions[name] for name in values)
    return f"WHERE {stated}" if stated else "", values


def row_of(entry: Entry, cipher: Cipher | None) -> dict[str, Any]:
    """Values of COLUMNS: texts, numbers, and bytes for body and vector (float32, little-endian; empty: none)."""
    body = orjson.dumps({"question": entry.question, "answer": entry.answer.to_bytes().decode()})
    return {
        "key": entry.key,
        "id": entry.id,
        "partition": entry.partition,
        "space": entry.space,
        "tenant": entry.tenant,
        "model": entry.model,
        "tags": orjson.dumps(entry.tags).decode(),
        "created": entry.created,
        "expires": entry.expires,
        "ttl": entry.ttl,
        "sliding": int(entry.sliding),
        "body": body if cipher is None else cipher.seal(body, entry.key),
        "vector": b"" if entry.vector is None else entry.vector.astype("<f4").tobytes(),
    }


def entry_of(row: Mapping[str, Any] | Sequence[Any], cipher: Cipher | None) -> Entry | None:
    """The entry of a row, values in the order of COLUMNS or by their names; None: it is damaged or sealed otherwise."""
    try:
        if not isinstance(row, Mapping):
            row = dict(zip(COLUMNS, row, strict=True))
        sealed = bytes(row["body"])
        body = orjson.loads(sealed if cipher is None else cipher.open(sealed, row["key"]))
        blob = bytes(row["vector"])
        vector = vector_of(blob)
        if blob and vector is None:
            return None
        return Entry(
            id=str(row["id"]),
            partition=str(row["partition"]),
            key=str(row["key"]),
            tenant=str(row["tenant"]),
            model=str(row["model"]),
            question=str(body["question"]),
            answer=Answer.from_bytes(body["answer"].encode()),
            vector=vector,
            space=str(row["space"]),
            created=float(row["created"]),
            expires=float(row["expires"]),
            ttl=float(row["ttl"]),
            sliding=bool(int(row["sliding"])),
            tags=tuple(str(tag) for tag in orjson.loads(row["tags"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def vector_of(blob: bytes) -> FloatArray | None:
    """The vector in these bytes; None: there is none, or it is damaged."""
    if not blob or len(blob) % 4:
        return None
    vector = np.frombuffer(blob, "<f4").astype(np.float32)
    return vector if is_unit(vector) else None


def vectors_of(rows: Sequence[tuple[str, bytes]]) -> tuple[list[str], FloatArray]:
    """The keys whose vectors are whole, and these [N, d], out of (key, blob); those of another width are left out."""
    width = Counter(len(blob) for _, blob in rows).most_common(1)[0][0] if rows else 0
    if not width or width % 4:
        return [], np.empty((0, 0), np.float32)
    fitting = [(key, blob) for key, blob in rows if len(blob) == width]
    joined = np.frombuffer(b"".join(blob for _, blob in fitting), "<f4").astype(np.float32).reshape(len(fitting), -1)
    lengths = np.einsum("nd,nd->n", joined, joined)
    good = np.abs(lengths - 1) < UNIT_ERROR
    return [key for (key, _), is_good in zip(fitting, good, strict=True) if is_good], joined[good]


def is_unit(vector: FloatArray) -> bool:
    """Whether the vector is of length 1: not zero, and without NaN or infinity."""
    return bool(abs(float(vector @ vector) - 1) < UNIT_ERROR)
