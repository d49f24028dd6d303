"""A process that reads bodies: takes a kind and a body from its socket, gives back what came of them, and so on.

Its other end is `readers.ReaderProcess`. It ends with its socket, and never sees the terminal's Ctrl-C.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import socket
from io import BufferedRWPair
from typing import Any

from pagoda.server.failures import DescribedError, describe
from pagoda.server.reading import Reader

logger = logging.getLogger("pagoda.server")

LENGTH = 8  # bytes of the number before each message that says how long it is
NICENESS = 5  # the engine's threads come first


def pack(message: object) -> bytes:
    """A message as it goes over the socket, after its length."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def length(content: bytes) -> bytes:
    """What goes before `content`."""
    return len(content).to_bytes(LENGTH, "little")


def main(fd: int) -> None:
    """The life of the process; `fd` is its end of the socket. The first message is how to make its reader."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    with socket.socket(fileno=fd) as sock, sock.makefile("rwb") as file:
        load_text, limits = pickle.loads(_read(file) or b"")
        reader = Reader(load_text(), limits)
        _send(file, None)
        gc.disable()  # a body of many small parts makes no rubbish until it is done with, and is looked through for it
        while (kind := _read(file)) is not None:
            _send(file, outcome(reader, kind.decode(), _read(file) or b""))
            gc.collect()


def outcome(reader: Reader, kind: str, data: bytes) -> Any:
    """What the reader makes of `data`, or the DescribedError that answers it."""
    try:
        return reader.read(kind, data)
    except Exception as error:
        described = DescribedError(*describe(error))
        if described.status == 500:
            logger.exception("unexpected error while a body was read")
        return described


def _read(file: BufferedRWPair) -> bytes | None:
    """What comes next; None at the end."""
    size = file.read(LENGTH)
    return file.read(int.from_bytes(size, "little")) if len(size) == LENGTH else None


def _send(file: BufferedRWPair, message: object) -> None:
    content = pack(message)
    file.write(length(content))
    file.write(content)
    file.flush()
