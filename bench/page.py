"""How soon the page shows a token, and how smoothly it draws a long answer, in a real Chromium.

The answer has 2,000 tokens, 200 a second, from an engine that computes nothing. Bars: the first token is on the screen
50 ms after it has arrived, and there are 60 frames a second. Needs node, chromium and playwright-core.

    PYTHONPATH=src:tests python bench/page.py .venv-clients/node_modules/playwright-core
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fake_engine import FakeEngine, FakeLoaded
from serving import serving

TOKENS = 2000


def main() -> None:
    engine = FakeEngine(step_s=0.005)
    engine.max_context = TOKENS + 100
    with serving(FakeLoaded(engine, max_context=TOKENS + 100)) as served:
        script = Path(__file__).with_suffix(".mjs")
        subprocess.run(["node", str(script), served.url, str(Path(sys.argv[1]).resolve()), str(TOKENS)], check=True)


if __name__ == "__main__":
    main()
