"""The adapters that a server has: which name stands for which version, and which versions are in memory.

A version is one content of an adapter's files. Requests name a version through a name, and go on with it however the
name moves meanwhile. As many versions as `max_in_memory` and `max_bytes` say stay in memory; those used longest ago are
read from their files again when somebody asks for them. Safe to use from several threads; `load` waits for the disk.

Names come from outside, by `add`, or from a folder, whose adapters are read when they are first asked for, and again
when their files have changed (`is_stale`, `refresh`). A version there that cannot be read leaves the one before it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pagoda.adapters.adapter import Adapter
from pagoda.adapters.files import read_adapter
from pagoda.adapters.place import Base, place
from pagoda.backends.base import LoadedModel, PlacedAdapter
from pagoda.backends.specs import LoraType
from pagoda.engine.adapter_folder import AdapterFolder, Stamp
from pagoda.errors import CapacityError, FormatError, ModelNotFoundError, PagodaError, RequestError
from pagoda.types import LoadedAdapter

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class AdapterVersion:
    """One content. `placed` is None while it is on disk alone; `pins` are requests that compute with it."""

    path: Path
    digest: str
    placed: PlacedAdapter | None
    last_used: float = field(default_factory=time.monotonic)
    pins: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_bytes(self) -> int:
        """In memory."""
        return 0 if self.placed is None else self.placed.bytes


class AdapterStore:
    """Adapters of one loaded model.

    read: an adapter's path → its digest, and what the model made of it; raises what reading and placing raise.
    """

    def __init__(
        self,
        read: Callable[[Path], tuple[str, PlacedAdapter]],
        *,
        max_in_memory: int,
        max_bytes: int | None = None,
        folder: AdapterFolder | None = None,
    ) -> None:
        self._read_file = read
        self._max_in_memory = max_in_memory
        self._max_bytes = max_bytes
        self._folder = folder
        self._versions: dict[str, AdapterVersion] = {}  # by name
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._stamps: dict[str, Stamp] = {}  # by name: what the folder had, of those that were read from there
        self._broken: dict[str, tuple[Stamp | None, str]] = {}  # by name: what could not be read, and why

    @property
    def names(self) -> tuple[str, ...]:
        """Of all adapters that may be asked for, those of the folder last."""
        names = tuple(self._versions.copy())
        return names if self._folder is None else (*names, *sorted(self._folder.names().difference(names)))

    def has(self, name: str) -> bool:
        """Whether it may be asked for."""
        return name in self._versions or (self._folder is not None and self._folder.find(name) is not None)

    def known(self, name: str) -> AdapterVersion | None:
        """What the name means now; None: nothing, or it stands in the folder and has not been read yet."""
        return self._versions.get(name)

    @property
    def num_bytes(self) -> int:
        """What adapters take in memory."""
        return sum(version.num_bytes for version in self._all())

    @property
    def reserved_bytes(self) -> int:
        """What is to be left free for them."""
        return self.num_bytes if self._max_bytes is None else self._max_bytes

    @property
    def num_in_memory(self) -> int:
        return sum(version.placed is not None for version in self._all())

    def _all(self) -> set[AdapterVersion]:
        return set(self._versions.copy().values())

    def _read(self, path: Path) -> tuple[str, PlacedAdapter]:
        """CapacityError: it alone takes more than there is for adapters."""
        digest, placed = self._read_file(path)
        if self._max_bytes is not None and placed.bytes > self._max_bytes:
            raise CapacityError(
                f"{path} takes {placed.bytes:,} bytes of memory, but --lora-memory is {self._max_bytes:,}; raise it"
            )
        return digest, placed

    def add(self, name: str, path: Path, *, replace: bool = False, stamp: Stamp | None = None) -> AdapterVersion:
        """Read an adapter, and call it `name`. RequestError: the name is taken, and not to be replaced.

        stamp: what the folder of adapters had, where it comes from there.
        """
        if name in self._versions and not replace:
            raise RequestError(f"an adapter called {name!r} is loaded already", param="lora_name")
        digest, placed = self._read(path)
        version = AdapterVersion(path, digest, placed)
        with self._lock:
            if name in self._versions and not replace:
                raise RequestError(f"an adapter called {name!r} is loaded already", param="lora_name")
            self._name(name, version, stamp)
        self._evict()
        return version

    def _name(self, name: str, version: AdapterVersion, stamp: Stamp | None = None) -> None:
        self._versions[name] = version
        self._stamps.pop(name, None)
        if stamp is not None:
            self._stamps[name] = stamp

    # From the folder

    def is_stale(self, name: str) -> bool:
        """Whether the folder has something else under the name than what it means here. A few looks at the disk."""
        if self._folder is None or (name in self._versions and name not in self._stamps):
            return False
        return self._folder.stamp(name) != self._stamps.get(name) and self._folder.is_there

    def refresh(self, name: str) -> None:
        """Let the name mean what the folder has under it now. Waits for the disk.

        RequestError: it cannot be read, and there is no version before it. Requests under way go on with theirs.
        """
        assert self._folder is not None
        with self._refreshing:
            if not self.is_stale(name):  # somebody else was faster
                return
            stamp, path = self._folder.stamp(name), self._folder.find(name)
            if stamp is None or path is None:
                self._versions.pop(name, None)
                self._stamps.pop(name, None)
                return
            if self._broken.get(name, (None, ""))[0] != stamp:
                try:
                    self.add(name, path, replace=True, stamp=stamp)
                    self._broken.pop(name, None)
                    log.info("adapter %s was read from %s", name, path)
                except (PagodaError, OSError) as error:
                    self._broken[name] = stamp, str(error)
                    log.warning("adapter %s cannot be read, and stays what it was: %s", name, error)
        if name in self._broken and name not in self._versions:
            raise RequestError(f"the adapter {name!r} cannot be read: {self._broken[name][1]}", param="model")

    # By name

    def remove(self, name: str) -> None:
        """Forget a name. Requests under way go on. ModelNotFoundError: there is none."""
        with self._lock:
            self._stamps.pop(name, None)
            if self._versions.pop(name, None) is None:
                raise ModelNotFoundError(f"no adapter is called {name!r}")

    def point(self, name: str, to: str) -> AdapterVersion:
        """From now on, `name` means the version that `to` means. ModelNotFoundError: there is no such adapter."""
        with self._lock:
            version = self._find(to)
            self._name(name, version)
            return version

    def find(self, name: str) -> AdapterVersion:
        """What the name means now. ModelNotFoundError: nothing."""
        with self._lock:
            return self._find(name)

    def _find(self, name: str) -> AdapterVersion:
        if name not in self._versions:
            raise ModelNotFoundError(f"no adapter is called {name!r}")
        return self._versions[name]

    def pin(self, name: str) -> AdapterVersion:
        """What the name means now, which stays in memory, once it is there, until `unpin`. ModelNotFoundError."""
        with self._lock:
            version = self._find(name)
            version.pins += 1
            version.last_used = time.monotonic()
            return version

    def unpin(self, version: AdapterVersion) -> None:
        with self._lock:
            version.pins -= 1
        self._evict()

    def load(self, version: AdapterVersion, name: str) -> LoadedAdapter:
        """The pinned version, as requests by that name carry it; read from its files where it is not in memory.

        Others that ask for the same meanwhile wait. FormatError: the files are not what they were.
        """
        with version.loading:
            placed = version.placed
            if placed is None:
                digest, placed = self._read(version.path)
                if digest != version.digest:
                    raise FormatError(
                        "the adapter has changed since it was loaded; load it again", path=str(version.path)
                    )
                version.placed = placed
                log.info("adapter %s is in memory again", name)
        self._evict()
        return LoadedAdapter(name, version.digest, placed)

    def _evict(self) -> None:
        """Take versions that nobody computes with out of memory, those used longest ago first."""
        with self._lock:
            inside = [version for version in set(self._versions.values()) if version.placed is not None]
            idle = sorted((version for version in inside if not version.pins), key=lambda version: version.last_used)
            count, size = len(inside), sum(version.num_bytes for version in inside)
            for version in idle:
                if count <= self._max_in_memory and (self._max_bytes is None or size <= self._max_bytes):
                    break
                count, size = count - 1, size - version.num_bytes
                version.placed = None


def open_store(
    model: LoadedModel,
    base: Base,
    *,
    type: LoraType,
    max_in_memory: int,
    max_bytes: int | None,
    folder: AdapterFolder | None = None,
) -> AdapterStore:
    """A store of adapters for the loaded model."""

    def read(path: Path) -> tuple[str, PlacedAdapter]:
        adapter: Adapter = read_adapter(path)
        return adapter.digest, model.place_adapter(place(adapter, base), type=type)

    return AdapterStore(read, max_in_memory=max_in_memory, max_bytes=max_bytes, folder=folder)


def parse_named(given: str) -> tuple[str, Path]:
    """(name, path) of `name=path`; a path alone gives its last part as the name. RequestError: neither."""
    name, equals, path = given.partition("=")
    if not equals:
        name, path = Path(given).stem if given.endswith(".gguf") else Path(given).name, given
    if not name or not path:
        raise RequestError(f"--lora {given!r}: say name=path", param="lora")
    return name, Path(path).expanduser()
