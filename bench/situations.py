"""The ten situations that /live explains, each made on purpose with a real engine: does it get its sentence?

    PYTHONPATH=src:tests python bench/situations.py [MODEL] [--only NAME,NAME] [--busy] [--seconds 14]

For each a server is started, loaded for some seconds, and asked for its situation twice a second; the one that it names
most often in the last seconds counts, and the sentence is printed. Ceilings are measured once, at the start. On a
machine that other programs use every sentence is about those; --busy looks past them, to try the script. Exits with 1
where a sentence is another one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from cache_servers import redis_server
from fake_drafters import FakeDrafter
from pagoda.config import EngineSettings
from pagoda.engine.load import load_engine
from pagoda.grammar.constraint import GrammarConstraint
from pagoda.hardware.host import int8_peak, read_bandwidth
from serving import Served, serving, wait_for

TEXT = "The lighthouse keeper lit the lamp and looked out over the grey water. "
LAST_S = 4.0  # of a load, in which it is listened to; sentences speak of the last ten seconds
numbers = itertools.count()

Load = Callable[[Served, threading.Event], None]


@dataclass(frozen=True)
class Scene:
    """What makes a situation: settings, and a load that goes on until its event is set."""

    load: Load
    engine: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)
    drafter: FakeDrafter | None = None
    store: bool = False  # a Redis that is killed before the load
    threads: int = 0  # that other programs keep busy
    mask_s: float = 0.0  # that each token mask takes more: no grammar that the server takes is so costly


def asks(clients: int, prompt: int, tokens: int, pause: float = 0.0, **body: Any) -> Load:
    """So many clients that ask one question after the other; `prompt` counts words."""

    def load(served: Served, over: threading.Event) -> None:
        def client() -> None:
            with httpx.Client(base_url=served.url, timeout=300) as http:
                while not over.is_set():
                    words = random.Random(next(numbers)).choices(TEXT.split(), k=prompt)
                    asked = {"prompt": " ".join(words), "max_tokens": tokens, "ignore_eos": True}
                    read(http, "/v1/completions", asked | {"stream": True} | body, over)
                    over.wait(pause)

        in_parallel([client] * clients)

    return load


def chats(clients: int, tokens: int, **body: Any) -> Load:
    """The same, in chats: constraints, the cache."""

    def load(served: Served, over: threading.Event) -> None:
        def client() -> None:
            with httpx.Client(base_url=served.url, timeout=300) as http:
                while not over.is_set():
                    message = {"role": "user", "content": f"What is thing number {next(numbers)}?"}
                    asked = {"messages": [message], "max_tokens": tokens, "stream": True}
                    read(http, "/v1/chat/completions", asked | body, over)

        in_parallel([client] * clients)

    return load


def read(http: httpx.Client, path: str, body: dict[str, Any], over: threading.Event) -> None:
    """The whole answer, unless it is over before."""
    with http.stream("POST", path, json=body) as response:
        for _ in response.iter_lines():
            if over.is_set():
                return


def never_read(served: Served, over: threading.Event) -> None:
    """A client that asks for a long answer and reads none of it."""
    address = urlsplit(served.url)
    body = {"prompt": TEXT, "max_tokens": 4000, "ignore_eos": True, "stream": True, "logprobs": 5, "n": 4}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with sock:
        sock.connect((address.hostname, address.port))
        sock.sendall(head.encode() + b"\r\n\r\n" + data)
        over.wait()


def in_parallel(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


SCENES: dict[str, Scene] = {
    "memory-bound decode": Scene(asks(1, 4, 600)),
    "prefill burst": Scene(asks(6, 700, 2)),
    "KV exhausted": Scene(asks(8, 60, 150), engine={"kv_memory_bytes": 12 << 20, "max_context": 512}),
    "queue bound": Scene(asks(10, 8, 60), engine={"max_num_seqs": 2}),
    "slow client": Scene(never_read),
    "thread stolen": Scene(asks(2, 4, 300), threads=2),
    "grammar-bound": Scene(chats(4, 200, structured_outputs={"regex": "[a-z ,]{100,900}"}), mask_s=0.03),
    "small batch": Scene(asks(4, 4, 300)),
    "draft losing": Scene(asks(1, 4, 300), drafter=FakeDrafter(longest=6)),
    "cache away": Scene(chats(2, 20), store=True),
}


def busy_loop() -> None:
    while True:
        pass


@contextmanager
def slow_masks(seconds: float) -> Iterator[None]:
    """Every mask takes so much longer."""
    fill = GrammarConstraint.fill

    def slowly(self: GrammarConstraint, allowed: Any) -> str | None:
        time.sleep(seconds)
        return fill(self, allowed)

    GrammarConstraint.fill = slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        GrammarConstraint.fill = fill  # type: ignore[method-assign]


@contextmanager
def others(count: int) -> Iterator[None]:
    """Programs that compute as much as they can."""
    processes = [multiprocessing.get_context("spawn").Process(target=busy_loop) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def play(name: str, scene: Scene, model: str, ceilings: tuple[float, float], seconds: float, busy: bool) -> bool:
    """Make the situation. → whether its sentence came"""
    settings = EngineSettings(model=model, **{"max_context": 4096, "kv_memory_bytes": 256 << 20} | scene.engine)
    loaded = load_engine(settings, drafters=None if scene.drafter is None else [scene.drafter])
    if scene.drafter is not None:
        scene.drafter.vocab_size = 30_000
    with ExitStack() as stack:
        options = dict(scene.server)
        if scene.store:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            address, process = stack.enter_context(redis_server(folder))
            options |= {"cache_store": address, "cache_embedder": "none"}
        served = stack.enter_context(serving(loaded, **options))
        if scene.store:
            process.kill()
        history = served.model.history
        history.roofline = replace(
            wait_for(lambda: history.roofline), bandwidth=ceilings[0], peak=ceilings[1], source="measured now"
        )
        if busy and not scene.threads:
            read_cpu = history._read_cpu
            history._read_cpu = lambda: replace(read_cpu(), machine=None)
        stack.enter_context(others(scene.threads))
        if scene.mask_s:
            stack.enter_context(slow_masks(scene.mask_s))
        said = listen(served, scene.load, seconds)
    loaded.close()
    found = Counter(situation for situation, _ in said).most_common(1)[0][0]
    sentence = next(sentence for situation, sentence in reversed(said) if situation == found)
    print(f"{'ok  ' if found == name else 'BAD '} {name}: {sentence}", flush=True)
    return found == name


def listen(served: Served, load: Load, seconds: float) -> list[tuple[str, str]]:
    """What is said twice a second in the load's last seconds."""
    over, said = threading.Event(), []
    worker = threading.Thread(target=load, args=(served, over))
    worker.start()
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        time.sleep(0.55)
        state = served.client.get("/live/state").json()
        if time.monotonic() - start > seconds - LAST_S:
            said.append((state["situation"], state["sentence"]))
    over.set()
    for row in served.client.get("/live/state").json()["requests"]:
        served.loaded.engine.abort(row["id"])
    worker.join()
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--only", default=",".join(SCENES))
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--seconds", type=float, default=14.0)
    args = parser.parse_args()
    ceilings = max(read_bandwidth(0) for _ in range(3)), max(int8_peak(0) for _ in range(3))
    print(f"measured: {ceilings[0] / 1e9:.1f} GB/s, {ceilings[1] / 1e9:.0f} Gop/s")
    good = [play(name, SCENES[name], args.model, ceilings, args.seconds, args.busy) for name in args.only.split(",")]
    print(f"{sum(good)} of {len(good)} situations got their sentence")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
