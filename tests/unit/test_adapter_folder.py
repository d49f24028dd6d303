"""A folder of adapters: names that nobody has loaded, new versions, and what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeLoaded, fake_adapter
from pagoda.engine.adapter_folder import AdapterFolder
from pagoda.engine.adapters import AdapterStore
from pagoda.errors import ConfigError, ModelNotFoundError, RequestError
from serving import Served, serving

PROMPT = {"prompt": "hello", "max_tokens": 4}


def put(folder: Path, name: str, content: str) -> None:
    """A new version in one piece, as `mv` does it."""
    new = folder / ".new"
    new.write_text(content)
    new.rename(folder / f"{name}.gguf")


def store_of(folder: Path, **more: Any) -> AdapterStore:
    return AdapterStore(fake_adapter, max_in_memory=4, folder=AdapterFolder(folder), **more)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Served]:
    put(tmp_path, "sql", "v1")
    with serving(FakeLoaded(adapters=store_of(tmp_path)), admin_key="root") as served:
        yield served


def contents(api: Served) -> list[bytes]:
    return [request.adapter.placed.content for request in api.loaded.engine.submitted]


def test_an_adapter_is_served_from_when_it_stands_there(api: Served, tmp_path: Path) -> None:
    cards = {card["id"]: card for card in api.client.get("/v1/models").json()["data"]}
    assert cards["sql"]["parent"] == "fake"
    assert cards["sql"]["status"] == {"value": "unloaded"}
    assert "digest" not in cards["sql"]
    api.ok("/v1/completions", model="sql", **PROMPT)
    card = api.client.get("/v1/models/sql").json()
    assert card["status"] == {"value": "loaded"}
    assert card["root"] == str(tmp_path / "sql.gguf")
    put(tmp_path, "tone", "v1 of tone")
    api.ok("/v1/completions", model="tone", **PROMPT)
    assert contents(api) == [b"v1", b"v1 of tone"]
    assert api.refused("/v1/completions", 404, model="nothing", **PROMPT)["code"] == "model_not_found"


def test_a_new_version_is_served_from_the_next_request_on(api: Served, tmp_path: Path) -> None:
    api.ok("/v1/completions", model="sql", **PROMPT)
    before = api.client.get("/v1/models/sql").json()["digest"]
    put(tmp_path, "sql", "v2 is longer")
    api.ok("/v1/completions", model="sql", **PROMPT)
    assert contents(api) == [b"v1", b"v2 is longer"]
    assert api.client.get("/v1/models/sql").json()["digest"] != before


def test_a_version_that_cannot_be_read_leaves_the_one_before(api: Served, tmp_path: Path) -> None:
    api.ok("/v1/completions", model="sql", **PROMPT)
    put(tmp_path, "sql", "bad")
    api.ok("/v1/completions", model="sql", **PROMPT)
    put(tmp_path, "sql", "v3")
    api.ok("/v1/completions", model="sql", **PROMPT)
    assert contents(api) == [b"v1", b"v1", b"v3"]


def test_one_that_never_could_be_read_is_refused_and_read_once(tmp_path: Path) -> None:
    put(tmp_path, "sql", "bad")
    reads = []

    def read(path: Path) -> tuple[str, Any]:
        reads.append(path)
        return fake_adapter(path)

    store = AdapterStore(read, max_in_memory=4, folder=AdapterFolder(tmp_path))
    for _ in range(3):
        with pytest.raises(RequestError, match=r"'sql' cannot be read: .*it is bad"):
            store.refresh("sql")
    assert len(reads) == 1
    put(tmp_path, "sql", "good")
    store.refresh("sql")
    assert store.find("sql").placed == fake_adapter(tmp_path / "sql.gguf")[1]


def test_one_that_is_taken_away_is_unknown(api: Served, tmp_path: Path) -> None:
    api.ok("/v1/completions", model="sql", **PROMPT)
    (tmp_path / "sql.gguf").unlink()
    api.refused("/v1/completions", 404, model="sql", **PROMPT)
    assert [card["id"] for card in api.client.get("/v1/models").json()["data"]] == ["fake"]


def test_a_folder_that_is_away_takes_nothing_away(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    put(folder, "sql", "v1")
    with serving(FakeLoaded(adapters=store_of(folder))) as api:
        api.ok("/v1/completions", model="sql", **PROMPT)
        folder.rename(tmp_path / "away")
        api.ok("/v1/completions", model="sql", **PROMPT)
        assert [card["id"] for card in api.client.get("/v1/models").json()["data"]] == ["fake", "sql"]
        (tmp_path / "away").rename(folder)
        put(folder, "sql", "v2 is longer")
        api.ok("/v1/completions", model="sql", **PROMPT)
        assert contents(api) == [b"v1", b"v1", b"v2 is longer"]


def test_names_from_outside_are_not_looked_for_in_the_folder(tmp_path: Path) -> None:
    """An alias too: it means what it was told to, whatever the folder has under the name."""
    store = store_of(tmp_path)
    (tmp_path / "elsewhere").write_text("from elsewhere")
    store.add("sql", tmp_path / "elsewhere")
    put(tmp_path, "sql", "v1")
    put(tmp_path, "tone", "tone")
    assert not store.is_stale("sql")
    store.refresh("tone")
    store.point("sql", "tone")
    assert not store.is_stale("sql")
    store.remove("sql")
    assert store.is_stale("sql")


def test_a_link_that_moves_is_a_new_version_and_the_old_one_can_still_be_read(tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    versions.mkdir()
    for name in ("1", "2"):
        (versions / name).write_text(name)
    link, folder = tmp_path / "adapters" / "sql.gguf", tmp_path / "adapters"
    folder.mkdir()
    link.symlink_to(versions / "1")
    store = store_of(folder)
    store.refresh("sql")
    first = store.pin("sql")
    (folder / ".next").symlink_to(versions / "2")
    os.replace(folder / ".next", link)
    assert store.is_stale("sql")
    store.refresh("sql")
    assert (first.path, store.find("sql").path) == (versions / "1", versions / "2")
    assert not store.is_stale("sql")


@pytest.mark.parametrize("name", ["", ".", "..", "../sql", "a/b", ".hidden", "a\0b", "x" * 300])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    put(tmp_path, "sql", "outside")
    assert AdapterFolder(folder).find(name) is None
    assert not store_of(folder).has(name)


def test_folders_of_peft_are_adapters_by_their_configuration(tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "adapter_config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    folder = AdapterFolder(tmp_path)
    assert folder.names() == {"sql"}
    before = folder.stamp("sql")
    (tmp_path / "sql" / "adapter_model.safetensors").write_text("weights")
    assert folder.stamp("sql") not in (None, before)


def test_without_a_folder_there_is_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--lora-dir: .*nowhere is no folder"):
        AdapterFolder(tmp_path / "nowhere")
    store = AdapterStore(fake_adapter, max_in_memory=1)
    assert not store.is_stale("sql")
    with pytest.raises(ModelNotFoundError):
        store.find("sql")
