"""A folder of adapters, each served by its name: `sql/` is a PEFT folder called sql, `tone.gguf` a GGUF adapter tone.

Nothing is read before somebody asks for it. An entry that changes is a new version: put it there in one piece, by
renaming a folder or moving a symbolic link.
"""

from __future__ import annotations

import os
from pathlib import Path

from pagoda.adapters.peft import CONFIG
from pagoda.errors import ConfigError

Stamp = tuple[str, tuple[tuple[str, int, int], ...]]  # where it lies; name, time of change and size of its files


class AdapterFolder:
    """What stands in it now. Raises ConfigError where there is no such folder."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ConfigError(f"--lora-dir: {path} is no folder")
        self.path = path

    @property
    def is_there(self) -> bool:
        """Whether the folder itself can be looked into: a share may be away for a while."""
        return self.path.is_dir()

    def names(self) -> set[str]:
        """Of all adapters there."""
        try:
            found = os.listdir(self.path)
        except OSError:
            return set()
        names = {one.removesuffix(".gguf") for one in found}
        return {name for name in names if self.find(name) is not None}

    def find(self, name: str) -> Path | None:
        """Where the adapter of this name lies, symbolic links followed; None: there is none."""
        if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
            return None
        folder, file = self.path / name, self.path / f"{name}.gguf"
        try:
            path = folder if (folder / CONFIG).is_file() else file if file.is_file() else None
        except OSError:  # the name is too long to be one
            return None
        return None if path is None else path.resolve()

    def stamp(self, name: str) -> Stamp | None:
        """Changes when the adapter's files do; None: there is no such adapter."""
        path = self.find(name)
        if path is None:
            return None
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            facts = [(file.name, file.stat()) for file in files]
        except OSError:  # it goes away at this moment
            return None
        return str(path), tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in facts)
