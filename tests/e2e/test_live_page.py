"""The live page in a real Chromium, over the default model: what it shows, at both widths, light and dark."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import chromium
from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.observe.cost import CostSettings
from pagoda.observe.roofline import Roofline
from serving import HANG_S, Served, serving, wait_for

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium: apt-get install chromium")

KEYS = {"api_keys": ("client",), "admin_key": "admin"}
PROMPT = "Tell a long story about a lighthouse keeper and the sea. " * 8


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    loaded = load_engine(EngineSettings(max_context=1024, max_num_seqs=4, kv_memory_bytes=64 << 20))
    with serving(loaded, cost=CostSettings(price=0.12), **KEYS) as served:
        served.client.headers["Authorization"] = "Bearer client"
        model = served.server.service.model()
        wait_for(lambda: model.history.roofline is not None)
        model.history.roofline = Roofline(77e6, 23040, 0.27e9, bandwidth=36e9, peak=915e9, source="a test")
        yield served
    loaded.close()


@pytest.fixture
def load(served: Served) -> Iterator[list[int]]:
    """Three clients that ask for long answers, until the test is over. → statuses of their answers"""
    statuses: list[int] = []
    over = threading.Event()

    def client(number: int) -> None:
        with httpx.Client(base_url=served.url, headers={"Authorization": "Bearer client"}, timeout=HANG_S) as http:
            while not over.is_set():
                body = {"prompt": PROMPT + str(number), "max_tokens": 200, "ignore_eos": True}
                statuses.append(http.post("/v1/completions", json=body).status_code)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    yield statuses
    over.set()
    model = served.server.service.model()
    for id in [row["id"] for row in _state(served)["requests"]]:
        model.engine.abort(id)
    for thread in threads:
        thread.join(HANG_S)


def _state(served: Served) -> dict[str, Any]:
    state: dict[str, Any] = httpx.get(f"{served.url}/live/state", headers={"X-Api-Key": "admin"}, timeout=HANG_S).json()
    return state


def _enter(page: chromium.Page, served: Served) -> None:
    page.open(f"{served.url}/live")
    page.wait("document.getElementById('ask') && !document.getElementById('ask').hidden")
    page.run("document.getElementById('key').value = 'admin'; document.querySelector('#ask button').click()")
    page.wait("document.getElementById('sentence').textContent")


def _pixels(page: chromium.Page, id: str) -> int:
    """How many colours the canvas shows."""
    script = f"""(() => {{ const c = document.getElementById('{id}');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const s = new Set();
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] == 255) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]);
        return s.size; }})()"""
    found: int = page.run(script)
    return found


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_what_the_page_shows(served: Served, load: list[int], tmp_path: Path, width: int, dark: bool) -> None:
    wait_for(lambda: sum(row["phase"] == "decode" for row in _state(served)["requests"]) == 3)
    with chromium.Page(width, dark=dark) as page:
        _enter(page, served)
        rows = page.wait("document.querySelectorAll('#requests tr').length", lambda n: n == 3)
        assert rows == 3
        assert "decode" in page.run("document.getElementById('requests').textContent")
        assert page.run("document.getElementById('money').textContent").startswith("an hour, a day$0.12, $2.88")
        assert page.run("document.querySelectorAll('.tile svg path').length") == 16
        page.wait("document.getElementById('roof').textContent", lambda text: "36 GB/s" in text)
        assert _pixels(page, "blocks") >= 4  # three owners, and what is free
        assert _pixels(page, "roofline") >= 2
        assert page.run("document.documentElement.scrollWidth") <= width, "the page is wider than the window"
        page.screenshot(tmp_path / f"live-{width}.png")
        ground = page.run("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(22, 21, 19)") == dark
        assert [problem for problem in page.problems if "403" not in problem and "401" not in problem] == []


def test_a_request_is_stopped_from_the_page(served: Served, load: list[int]) -> None:
    wait_for(lambda: len(_state(served)["requests"]) == 3)
    with chromium.Page(1280) as page:
        _enter(page, served)
        page.wait("document.querySelectorAll('#requests button').length", lambda n: n == 3)
        before = page.run("document.querySelector('#requests .id').title.split(',')[0]")
        page.run("document.querySelector('#requests button').click()")
        page.wait("document.getElementById('requests').innerHTML", lambda html: f'"{before}' not in html)
    assert 503 in load


def test_the_page_carries_no_code_and_loads_nothing_from_elsewhere(served: Served) -> None:
    html = httpx.get(f"{served.url}/live")
    policy = html.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in html.text
    assert "onclick" not in html.text
    for path in ("/live", "/live.css", "/live.js"):
        text = httpx.get(served.url + path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
