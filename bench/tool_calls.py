"""How often calls of tools parse: the 60 questions of tool_questions.json, to Pagoda and to llama-server.

    LLAMA_CPP_BIN=… python bench/tool_calls.py [MODEL] [--servers pagoda llama-server] [--choices required auto]
        [--threads N] [--json FILE]

Both get the same file and the same requests, greedy, once with `tool_choice` required and once with auto. A call parses
when its name is that of a tool that was offered and its arguments are JSON that is valid under the tool's schema.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from llama import Llama
from pagoda.sources import resolve
from servers import pagoda_command, serving

DATA = json.loads((Path(__file__).parent / "tool_questions.json").read_text())
STREAMS = 4
CONTEXT = 2048
MAX_TOKENS = 300
TIMEOUT = 3600  # seconds
Question = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one question. `parses`: there are calls, and all are valid; None: no call was made, and none was needed."""

    question: Question
    parses: bool | None
    names_right: bool
    answer: Any


def tools_of(question: Question) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, **DATA["tools"][name]}} for name in question["tools"]]


def ask(client: httpx.Client, choice: str, question: Question) -> Outcome:
    body = {
        "messages": question["messages"],
        "tools": tools_of(question),
        "tool_choice": choice,
        "parallel_tool_calls": True,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    response = client.post("/v1/chat/completions", json=body)
    answer = response.json()
    if response.status_code != 200:
        return Outcome(question, False, False, answer)
    message = answer["choices"][0]["message"]
    calls = message.get("tool_calls") or []
    names = sorted(call["function"]["name"] for call in calls)
    expected = sorted(question["expected"])
    is_needed = bool(expected) or choice == "required"
    parses = all(is_valid(question, call) for call in calls) if calls else (False if is_needed else None)
    return Outcome(question, parses, names == expected, message)


def is_valid(question: Question, call: Mapping[str, Any]) -> bool:
    function = call["function"]
    if function["name"] not in question["tools"]:
        return False
    try:
        arguments = json.loads(function["arguments"])
        jsonschema.Draft202012Validator(DATA["tools"][function["name"]]["parameters"]).validate(arguments)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def run(url: str, choice: str) -> list[Outcome]:
    with httpx.Client(base_url=url, timeout=TIMEOUT) as client, ThreadPoolExecutor(STREAMS) as threads:
        return list(threads.map(partial(ask, client, choice), DATA["questions"]))


def report(name: str, choice: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Print a line and what went wrong. → the figures"""
    needed = [outcome for outcome in outcomes if outcome.question["expected"] or choice == "required"]
    parsed = sum(outcome.parses is True for outcome in needed)
    broken = [outcome for outcome in outcomes if outcome.parses is False and outcome.answer.get("tool_calls")]
    quiet = [outcome for outcome in outcomes if not outcome.question["expected"]]
    kinds = Counter(outcome.question["kind"] for outcome in outcomes if outcome.names_right)
    figures = {
        "server": name,
        "tool_choice": choice,
        "calls parse": f"{parsed} of {len(needed)}",
        "broken calls": len(broken),
        "silent where no call is needed": f"{sum(o.parses is None for o in quiet)} of {len(quiet)}",
        "the tools that were expected": dict(kinds),
    }
    print(json.dumps(figures), flush=True)
    for outcome in outcomes:
        if outcome.parses is False:
            said = json.dumps(outcome.answer, ensure_ascii=False)[:600]
            print(f"    {outcome.question['id']}: {said}", flush=True)
    return figures


def pagoda(model: Path, threads: int, port: int) -> list[str]:
    size = ("--max-context", str(CONTEXT), "--max-num-seqs", str(STREAMS), "--threads", str(threads))
    return pagoda_command(model, port, *size)


def peer(model: Path, llama: Llama, port: int) -> list[str]:
    return [*llama.server_command(model, port, STREAMS, STREAMS * CONTEXT), "--jinja"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--servers", nargs="+", choices=["pagoda", "llama-server"], default=["pagoda", "llama-server"])
    parser.add_argument("--choices", nargs="+", choices=["required", "auto"], default=["required", "auto"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = resolve(arguments.model).path
    commands = {"pagoda": (partial(pagoda, model, arguments.threads), "/ready")}
    if "llama-server" in arguments.servers:
        commands["llama-server"] = (partial(peer, model, Llama.require(arguments.threads)), "/health")
    found = []
    for name in arguments.servers:
        with serving(*commands[name]) as server:
            found += [report(name, choice, run(server.url, choice)) for choice in arguments.choices]
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": model.name, "results": found}, indent=1))


if __name__ == "__main__":
    main()
