"""The pages' files: open, tagged, and nothing in them that their content security policy forbids."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from fake_engine import FakeLoaded
from pagoda.server.pages import FOLDER, files
from serving import Served, serving

PATHS = ["/", "/docs", *(f"/page/{name}" for name in sorted(files()))]


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(FakeLoaded(), api_keys=("k",)) as served:
        yield served


@pytest.mark.parametrize("path", PATHS)
def test_files_are_open_and_forbid_what_is_not_theirs(api: Served, path: str) -> None:
    response = api.client.get(path)
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    again = api.client.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.client.head(path).status_code == 200


def test_what_the_pages_ask_needs_a_key_all_the_same(api: Served) -> None:
    assert api.client.get("/v1/models").status_code == 401
    assert api.client.get("/openapi.json").status_code == 401


def test_other_files_are_not_there() -> None:
    with serving(FakeLoaded()) as served:
        for name in ("pages.py", "..%2fpages.py", "nothing.js", ""):
            assert served.client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", sorted(files()))
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert not re.search(r"(src|href|url|from|import)\W{1,3}(https?:)?//", text)
    assert "innerHTML" not in text
    if name.endswith(".html"):
        assert not re.search(r"<style|\son\w+=|javascript:|\sstyle=", text)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))


def test_pages_name_files_that_are_there() -> None:
    for name in files():
        named = re.findall(r"\"(?:page/|\./)([\w.]+)\"", (FOLDER / name).read_text())
        assert set(named) <= set(files())
