"""The TOML file that settings may stand in: which one it is, and what it holds."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pagoda.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_FILE = "pagoda.toml"


def settings_file(config: Path | None, environ: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """`config`, else `PAGODA_CONFIG`, else `pagoda.toml` here if there is one. → path and content"""
    path = config or Path(environ.get("PAGODA_CONFIG") or DEFAULT_FILE)
    if config is None and not environ.get("PAGODA_CONFIG") and not path.is_file():
        return path, {}
    return path, read_toml(path)


def read_toml(path: Path) -> dict[str, Any]:
    """Keys with hyphens."""
    try:
        return with_hyphens(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def with_hyphens(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same under names of flags."""
    return {key.replace("_", "-"): value for key, value in table.items()}


def refuse_unknown(path: Path, what: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for the first that is not known, with the name that is nearest."""
    known = sorted(known)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{path}: unknown {what} {key!r}; {hint}")
