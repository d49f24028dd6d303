"""The random number of a token: a pure function of (seed, choice index, position), so that batches cannot matter.

Philox4x32-10 of Salmon et al., 'Parallel random numbers: as easy as 1, 2, 3' (SC 2011): the key is the seed, the
counter is (position, choice, stream, 0). Streams keep independent draws of one position apart.
"""

from __future__ import annotations

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds over 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, choice_index: int, position: int, stream: int = 0) -> float:
    """53 random bits in [0, 1)."""
    word0, word1, _, _ = philox4x32((position, choice_index, stream, 0), (seed & _MASK, (seed >> 32) & _MASK))
    return float((word0 >> 5) * 2**26 + (word1 >> 6)) * 2.0**-53
