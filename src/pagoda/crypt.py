"""What is kept at rest, sealed with AES-256-GCM under a key that the operator holds."""

from __future__ import annotations

import hashlib
import os

from pagoda.errors import ConfigError

NONCE_BYTES = 12


class Cipher:
    """Seals bytes to their place, so that nothing sealed can be put in another's."""

    def __init__(self, secret: str, setting: str = "PAGODA_CACHE_KEY") -> None:
        """`secret`: at least 16 characters; the key is its SHA-256. `setting` is where it came from. ConfigError."""
        if len(secret) < 16:
            raise ConfigError(f"{setting} has fewer than 16 characters: `openssl rand -hex 32` makes a good one")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ConfigError(f"{setting} needs the package cryptography: pip install 'pagoda-llm[cache]'") from None
        self._aead = AESGCM(hashlib.sha256(secret.encode()).digest())

    def seal(self, data: bytes, place: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + bytes(self._aead.encrypt(nonce, data, place.encode()))

    def open(self, data: bytes, place: str) -> bytes:
        """Raises ValueError for what this key did not seal for this place."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._aead.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], place.encode()))
        except (InvalidTag, ValueError) as error:
            raise ValueError(f"not sealed with this key: {error!r}") from None
