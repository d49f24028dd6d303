"""Adapters over HTTP: loaded, asked for, moved, unloaded; and who may do that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_engine import FakeLoaded, fake_adapter
from pagoda.engine.adapters import AdapterStore
from pagoda.errors import CapacityError, FormatError, ModelNotFoundError, RequestError
from serving import Served, serving

ADMIN = {"Authorization": "Bearer root"}
PROMPT = {"prompt": "hello", "max_tokens": 4}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Served]:
    with serving(FakeLoaded(), admin_key="root") as served:
        yield served


def admin(api: Served, path: str, status: int = 200, **body: object) -> str:
    response = api.client.post(path, json=body, headers=ADMIN)
    assert response.status_code == status, response.text
    return response.text


def adapter(folder: Path, content: str, name: str = "a") -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


def test_an_adapter_is_a_model_whose_parent_is_the_base(api: Served, tmp_path: Path) -> None:
    path = adapter(tmp_path, "v1")
    said = admin(api, "/v1/load_lora_adapter", lora_name="sql", lora_path=path)
    assert said == "Success: LoRA adapter 'sql' added successfully."
    models = {model["id"]: model for model in api.client.get("/v1/models").json()["data"]}
    assert models["sql"]["parent"] == "fake"
    assert models["sql"]["root"] == path
    assert models["fake"]["parent"] is None
    assert api.client.get("/v1/models/sql").json() == models["sql"]
    assert api.ok("/v1/completions", model="sql", **PROMPT)["model"] == "sql"
    assert api.ok("/v1/completions", model="fake", **PROMPT)["model"] == "fake"


def test_requests_carry_the_version_that_the_name_means_when_they_come(api: Served, tmp_path: Path) -> None:
    admin(api, "/v1/load_lora_adapter", lora_name="sql", lora_path=adapter(tmp_path, "v1"))
    api.ok("/v1/completions", model="sql", **PROMPT)
    admin(api, "/v1/load_lora_adapter", lora_name="sql@2", lora_path=adapter(tmp_path, "v2", "b"))
    admin(api, "/v1/alias_lora_adapter", lora_name="sql", target="sql@2")
    api.ok("/v1/completions", model="sql", **PROMPT)
    api.ok("/v1/completions", model="fake", **PROMPT)
    carried = [request.adapter for request in api.loaded.engine.submitted]
    assert [None if one is None else (one.name, one.placed.content) for one in carried] == [
        ("sql", b"v1"),
        ("sql", b"v2"),
        None,
    ]


def test_requests_and_memory_are_counted_by_adapter(api: Served, tmp_path: Path) -> None:
    admin(api, "/v1/load_lora_adapter", lora_name="sql", lora_path=adapter(tmp_path, "v1"))
    for model in ("sql", "sql", "fake"):
        api.ok("/v1/completions", model=model, **PROMPT)
    lines = api.client.get("/metrics").text.splitlines()
    for line in (
        'pagoda_adapter_requests_total{adapter="sql",model_name="fake"} 2.0',
        'pagoda_adapter_tokens_total{adapter="sql",model_name="fake",type="completion"} 8.0',
        'pagoda_adapters_in_memory{model_name="fake"} 1.0',
        'pagoda_adapters_bytes{model_name="fake"} 2.0',
    ):
        assert line in lines


def test_what_cannot_be_loaded_is_refused(api: Served, tmp_path: Path) -> None:
    path = adapter(tmp_path, "v1")
    admin(api, "/v1/load_lora_adapter", 404, lora_name="sql", lora_path=str(tmp_path / "nowhere"))
    assert "is bad" in admin(api, "/v1/load_lora_adapter", 400, lora_name="x", lora_path=adapter(tmp_path, "bad", "b"))
    assert "own name" in admin(api, "/v1/load_lora_adapter", 400, lora_name="fake", lora_path=path)
    admin(api, "/v1/load_lora_adapter", lora_name="sql", lora_path=path)
    assert "loaded already" in admin(api, "/v1/load_lora_adapter", 400, lora_name="sql", lora_path=path)
    admin(api, "/v1/load_lora_adapter", lora_name="sql", lora_path=path, load_inplace=True)
    assert "unknown" in admin(api, "/v1/load_lora_adapter", 400, lora_name="y", lora_path=path, unknown=1)


def test_an_unloaded_adapter_is_unknown(api: Served, tmp_path: Path) -> None:
    admin(api, "/v1/load_lora_adapter", lora_name="sql", lora_path=adapter(tmp_path, "v1"))
    admin(api, "/v1/unload_lora_adapter", lora_name="sql")
    assert api.refused("/v1/completions", 404, model="sql", **PROMPT)["code"] == "model_not_found"
    admin(api, "/v1/unload_lora_adapter", 404, lora_name="sql")
    admin(api, "/v1/alias_lora_adapter", 404, lora_name="a", target="sql")
    assert api.client.get("/v1/models/sql").status_code == 404


@pytest.mark.parametrize("route", ["load", "unload", "alias"])
def test_only_the_admin_key_changes_adapters(api: Served, route: str) -> None:
    assert api.post(f"/v1/{route}_lora_adapter", lora_name="a").status_code == 403


def test_without_an_admin_key_nobody_changes_adapters() -> None:
    with serving(FakeLoaded()) as api:
        assert api.client.post("/v1/load_lora_adapter", json={}, headers=ADMIN).status_code == 403


def test_versions_used_longest_ago_leave_memory_and_come_back(tmp_path: Path) -> None:
    store = AdapterStore(fake_adapter, max_in_memory=2)
    for name in "abc":
        store.add(name, Path(adapter(tmp_path, name, name)))
    assert store.num_in_memory == 2
    assert store.find("a").placed is None
    pinned = store.pin("a")
    assert store.load(pinned, "a").placed == fake_adapter(tmp_path / "a")[1]
    store.pin("b")
    assert store.num_in_memory == 2
    assert store.find("a").placed is not None  # it is pinned
    store.unpin(pinned)


def test_memory_for_adapters_is_bounded(tmp_path: Path) -> None:
    """Those used longest ago leave it; one that would never fit is refused, and the name stays free."""
    store = AdapterStore(fake_adapter, max_in_memory=9, max_bytes=6)
    for name in ("abc", "def", "g"):
        store.add(name, Path(adapter(tmp_path, name, name)))
    assert store.num_bytes == 4
    assert store.reserved_bytes == 6
    assert store.find("abc").placed is None
    with pytest.raises(CapacityError, match=r"takes 7 bytes .* --lora-memory is 6; raise it"):
        store.add("large", Path(adapter(tmp_path, "largest", "large")))
    assert store.names == ("abc", "def", "g")


def test_an_adapter_whose_files_have_changed_is_not_read_again(tmp_path: Path) -> None:
    store = AdapterStore(fake_adapter, max_in_memory=1)
    store.add("a", Path(adapter(tmp_path, "v1", "a")))
    store.add("b", Path(adapter(tmp_path, "b", "b")))
    adapter(tmp_path, "v2", "a")
    with pytest.raises(FormatError, match="changed"):
        store.load(store.pin("a"), "a")


def test_one_read_serves_all_who_wait_for_it(tmp_path: Path) -> None:
    reads = []

    def read(path: Path) -> object:
        reads.append(path)
        return fake_adapter(path)

    store = AdapterStore(read, max_in_memory=1)  # type: ignore[arg-type]
    store.add("a", Path(adapter(tmp_path, "a", "a")))
    store.add("b", Path(adapter(tmp_path, "b", "b")))
    version = store.pin("a")
    threads = [threading.Thread(target=store.load, args=(version, "a")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 3


def test_names_are_unique_and_known(tmp_path: Path) -> None:
    store = AdapterStore(fake_adapter, max_in_memory=1)
    store.add("a", Path(adapter(tmp_path, "a", "a")))
    with pytest.raises(RequestError, match="loaded already"):
        store.add("a", tmp_path / "a")
    with pytest.raises(ModelNotFoundError, match="'b'"):
        store.pin("b")
