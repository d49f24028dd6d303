"""Room on the disk, looked at before the first byte is written."""

from __future__ import annotations

import os
from pathlib import Path

from pagoda.errors import CapacityError


def check_room(folder: Path, num_bytes: int, *, there: int = 0) -> None:
    """CapacityError if `folder`'s disk has no room for `num_bytes`, of which `there` are on it already."""
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize + there
    if num_bytes > free:
        raise CapacityError(
            f"{folder} has {free / 1e6:,.0f} MB left, and the output takes {num_bytes / 1e6:,.0f} MB; make room"
        )
