"""Any adapter's files → an `Adapter`."""

from __future__ import annotations

from pathlib import Path

from pagoda.adapters.adapter import Adapter
from pagoda.adapters.gguf import read_gguf_adapter
from pagoda.adapters.peft import CONFIG, read_peft
from pagoda.errors import FormatError


def read_adapter(path: Path | str) -> Adapter:
    """Read a PEFT folder, or a GGUF adapter file.

    FormatError for what is damaged, UnsupportedError for what is not understood; both name it.
    """
    path = Path(path)
    if path.is_dir() and (path / CONFIG).is_file():
        adapter = read_peft(path)
    elif path.is_file():
        adapter = read_gguf_adapter(path)
    else:
        if not path.exists():
            raise FormatError("no adapter: there is no such file or folder", path=str(path))
        raise FormatError(f"no adapter: neither a folder with {CONFIG} nor a .gguf file", path=str(path))
    adapter.check()
    return adapter
