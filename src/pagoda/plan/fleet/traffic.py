"""Traffic: when requests came, how long they were, and what they share, from a log of `--request-log`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pagoda.errors import ConfigError
from pagoda.observe.request_log import RequestLine, read_lines

PIECE_TOKENS = 64  # of the prompt, for each hash of a server's log
MAX_REQUESTS = 100_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. Times in seconds; `at` from the first request on."""

    at: float
    prompt: int  # tokens
    output: int
    prefix: tuple[int, ...] = ()
    ttft_s: float | None = None  # as it was logged; None: there was no stream
    tpot_s: float | None = None
    cached: int = 0  # tokens of the prompt that were in a prefix cache, as logged
    upstream: str = ""  # replica that answered, in a gateway's log

    @property
    def piece_tokens(self) -> float:
        """Tokens that a hash of the prefix stands for: 64, or in a gateway's log what 256 bytes of text come to. The
        last bytes of a text have no hash: half as many as one stands for, at the mean."""
        if not self.upstream or not self.prefix:
            return float(PIECE_TOKENS)
        return min(float(PIECE_TOKENS), self.prompt / (len(self.prefix) + 0.5))

    def held_tokens(self, num_pieces: int) -> int:
        """Tokens that are in a cache that holds so many pieces: as logged, if the log's cache held as many pieces; the
        last token is always computed, for its logits."""
        found = num_pieces * self.piece_tokens
        is_logged = abs(self.cached - found) < 1.5 * self.piece_tokens
        return min(self.cached if is_logged else int(found), self.prompt - 1)


def read_traffic(path: Path) -> list[Arrival]:
    """The answered requests of a log, by arrival. ConfigError that names the line that is none, or an empty log."""
    found = [_arrival(line) for line in read_lines(path) if line.prompt_tokens and line.completion_tokens]
    if not found:
        raise ConfigError(f"--fleet {path}: holds no answered requests, as `pagoda serve --request-log` writes them")
    if len(found) > MAX_REQUESTS:
        raise ConfigError(f"--fleet {path}: {len(found)} requests; cut the log to the {MAX_REQUESTS} that matter most")
    start = min(one.at for one in found)
    return sorted((replace(one, at=one.at - start) for one in found), key=lambda one: one.at)


def _arrival(line: RequestLine) -> Arrival:
    """What was answered from the semantic cache has no tokens, and does not come here."""
    prompt, output, prefix = line.prompt_tokens, line.completion_tokens, tuple(line.prefix)
    if not line.stream or line.ttft is None:
        return Arrival(line.arrival, prompt, output, prefix, cached=line.cached_tokens, upstream=line.upstream)
    tpot = (line.seconds - line.ttft) / (output - 1) if output > 1 else None
    return Arrival(line.arrival, prompt, output, prefix, line.ttft, tpot, line.cached_tokens, line.upstream)


def multiplied(traffic: Sequence[Arrival], times: int) -> list[Arrival]:
    """So many times the traffic: copies that come between each other and share no prefixes."""
    span = traffic[-1].at or 1.0
    copies = [
        replace(
            one, at=(one.at + span * copy / times / len(traffic)), prefix=tuple(hash((copy, h)) for h in one.prefix)
        )
        for copy in range(times)
        for one in traffic
    ]
    return sorted(copies, key=lambda one: one.at)
