"""The page in Debian's Chromium, driven by playwright-core, against the fake engine. `page.mjs` holds the cases."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_engine import FakeEngine, FakeLoaded
from serving import serving

HERE = Path(__file__).parent
PLAYWRIGHT = HERE.parents[1] / ".venv-clients" / "node_modules" / "playwright-core"
CASES = re.findall(r"^  async (\w+)\(", (HERE / "page.mjs").read_text(), re.MULTILINE)
KEY = "sk-page"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that asks for a key, and takes 2 ms for a step."""
    if not (shutil.which("node") and shutil.which("chromium")):
        pytest.skip("the page is tested where node and chromium are: apt install nodejs chromium")
    if not PLAYWRIGHT.exists():
        pytest.skip("playwright-core is not installed: make .venv-clients/playwright")
    with serving(FakeLoaded(FakeEngine(step_s=0.002)), api_keys=(KEY,)) as served:
        yield served.url


@functools.cache
def outcomes(url: str) -> dict[str, str]:
    """What became of each case: "" where it went well. Screenshots go to PAGE_SCREENSHOTS, where that is set."""
    folder = os.environ.get("PAGE_SCREENSHOTS", "/tmp/pagoda-page")
    command = ["node", str(HERE / "page.mjs"), url, KEY, folder, str(PLAYWRIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = [json.loads(line.removeprefix("case ")) for line in done.stdout.splitlines() if line.startswith("case {")]
    assert lines, done.stdout + done.stderr
    return {line["name"]: line["error"] for line in lines}


@pytest.mark.parametrize("case", CASES)
def test_page(case: str, url: str) -> None:
    error = outcomes(url).get(case, "it was not run")
    assert not error, error
