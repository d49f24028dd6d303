"""Picking the next token of every row of a batch, natively."""

from __future__ import annotations

from pagoda.sampling.reference import ReferenceSampler


class Sampler(ReferenceSampler):
    """See `pagoda.sampling.base.SamplerProtocol`."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
