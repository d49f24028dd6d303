"""Prompts for `pagoda bench speculation`: edits of source files, new code, prose, and mixes of them.

    python bench/speculation_prompts.py FOLDER

writes edits.jsonl (a file of 40 to 90 lines and a small change; the whole file is to be returned), predicted.jsonl (the
same, with the file as the prediction), code.jsonl, prose.jsonl, mixed.jsonl (16, four of each kind and four questions)
and half_edits.jsonl (16, eight of them edits). The files are Pagoda's own, as they lie in this checkout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

EDITS = (
    ("src/pagoda/kv/table.py", "Rename the attribute `tail_shared` to `last_is_shared`."),
    ("src/pagoda/backends/cores.py", "Add a line `import logging` to the imports, in alphabetical order."),
    ("src/pagoda/engine/output.py", "Give every function a docstring of one line where it has none."),
    ("src/pagoda/engine/verify.py", "Rename the function `_verify_drafts` to `_check_drafts` wherever it is used."),
    ("src/pagoda/engine/speculation/matching.py", "Change NGRAM to 4 and MOST_PLACES to 16."),
    ("src/pagoda/sampling/dry.py", "Add the comment `# See the paper's section 3.` above the first function."),
    ("src/pagoda/evals/overlap.py", "Rename the parameter of the last function to `source_text`."),
    ("src/pagoda/evals/sentences.py", "Add a constant `MAX_SENTENCES = 1000` after the imports."),
    ("src/pagoda/kv/blocks.py", "Rename the method `share` to `retain`, and change nothing else."),
    ("src/pagoda/text/specials.py", "Add type hints where a parameter has none, and change nothing else."),
    ("src/pagoda/models/granite.py", "Change the module's docstring to `The Granite family.`."),
    ("src/pagoda/text/end_tokens.py", "Add a line `__all__: list[str] = []` after the imports."),
)

CODE = (
    "Write a Python class LRUCache with get and put, both in constant time, with type hints and docstrings.",
    "Write a Python function that parses an ISO 8601 duration such as P3DT4H into a timedelta. Raise ValueError.",
    "Write a Python context manager that times a block and prints the seconds, and a decorator that uses it.",
    "Write a small HTTP router in Python: register paths with {names} in them, and match a path to a handler.",
    "Write a Python function that merges overlapping intervals, and five pytest tests for it.",
    "Write a token bucket rate limiter in Python that is safe to use from several threads.",
    "Write a Python script that finds duplicate files below a folder by size and then by SHA-256.",
    "Write a Trie in Python with insert, search and all words that start with a prefix.",
    "Write a Python function that topologically sorts a graph given as a dict, and names a cycle if there is one.",
    "Write a CSV to JSON converter in Python with argparse, streaming, that infers integers and floats.",
    "Write a retry decorator in Python with exponential backoff, jitter and a list of exceptions.",
    "Write a matrix class in Python with addition, multiplication, transpose and a readable repr.",
)

PROSE = (
    "Tell the story of a lighthouse keeper who finds a letter in a bottle.",
    "Explain to a child why the sky is blue and the sunset red.",
    "Describe a morning on a market in a small town by the sea.",
    "Write a letter to a friend who moves to another country.",
    "What would change in daily life if nobody needed to sleep?",
    "Describe how bread is made, as someone who loves it would.",
    "Write about a train journey through mountains in winter.",
    "Explain what a library meant to a village a hundred years ago.",
    "Tell of two neighbours who quarrel about a tree and make up.",
    "Describe a thunderstorm from the first cloud to the last drop.",
    "What makes a good teacher? Write it as a short essay.",
    "Write the first page of a novel that begins in an empty theatre.",
)

QUESTIONS = (
    "List the months of the year with the number of days of each.",
    "Name ten capitals of Europe with a sentence about each.",
    "Give a recipe for pancakes as a numbered list.",
    "Compare bicycles and cars in a table of five rows.",
)


def message(name: str, text: str, prediction: str | None = None) -> dict[str, Any]:
    line: dict[str, Any] = {"name": name, "messages": [{"role": "user", "content": text}]}
    return line if prediction is None else line | {"prediction": prediction}


def edits(*, predicted: bool) -> list[dict[str, Any]]:
    lines = []
    for path, change in EDITS:
        source = (ROOT / path).read_text()
        fenced = f"```python\n{source}```"
        text = f"{change} Return the whole file, in one code block, and nothing else.\n\n{fenced}"
        lines.append(message(Path(path).stem, text, fenced if predicted else None))
    return lines


def numbered(name: str, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    return [message(f"{name} {number}", text) for number, text in enumerate(texts, start=1)]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    edit, code, prose = edits(predicted=False), numbered("code", CODE), numbered("prose", PROSE)
    sets = {
        "edits": edit,
        "predicted": edits(predicted=True),
        "code": code,
        "prose": prose,
        "mixed": [*edit[:4], *code[:4], *prose[:4], *numbered("question", QUESTIONS)],
        "half_edits": [*edit[:8], *code[:4], *prose[:4]],
    }
    for name, lines in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{folder / name}.jsonl: {len(lines)} prompts")


if __name__ == "__main__":
    main()
