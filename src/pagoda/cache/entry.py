"""What a cache keeps: one question with the answer that it got, as deltas that can be sent again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from pagoda.types import FinishReason, FloatArray


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, in the pieces in which it came."""

    pieces: tuple[tuple[str, tuple[int, ...]], ...]  # text and token ids of each delta
    finish_reason: FinishReason = "stop"
    stop_reason: int | str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def to_bytes(self) -> bytes:
        return orjson.dumps(
            {
                "pieces": self.pieces,
                "finish": self.finish_reason,
                "stop": self.stop_reason,
                "tokens": (self.prompt_tokens, self.completion_tokens),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Answer:
        """Raises ValueError for bytes that `to_bytes` did not write."""
        try:
            shape = orjson.loads(data)
            pieces = tuple((str(text), tuple(int(token) for token in tokens)) for text, tokens in shape["pieces"])
            prompt_tokens, completion_tokens = shape["tokens"]
            return cls(pieces, shape["finish"], shape["stop"], int(prompt_tokens), int(completion_tokens))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an answer: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Entry:
    """One question and its answer. `partition` is the hash of all that must be equal (`policy.partition_of`)."""

    id: str
    partition: str
    key: str  # of the partition and the question's normal form: at most one entry has it
    tenant: str
    model: str
    question: str
    answer: Answer
    vector: FloatArray | None  # [d], of length 1; None: found by its key alone
    space: str  # digest of the embedder that made the vector
    created: float  # time.time() seconds
    expires: float
    ttl: float  # seconds, from which a sliding lifetime starts anew
    sliding: bool = False
    tags: tuple[str, ...] = ()

    def is_alive(self, now: float) -> bool:
        return now < self.expires


def digest(parts: Iterable[str | bytes]) -> str:
    """A hash of the parts and of where each ends."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return hashed.hexdigest()[:40]


def entry_id(key: str) -> str:
    """The id of the entry of a key: one that is written again keeps it."""
    return "ce-" + digest(["entry", key])[:24]
