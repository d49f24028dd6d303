"""What each protocol costs the server beside /v1/chat/completions: CPU time a token, at 16 streams.

The engine computes nothing. The doors take turns, so that a machine's moods meet all of them.

    PYTHONPATH=src:tests python bench/doors.py [rounds]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from fake_engine import FakeEngine, FakeLoaded
from serving import serving

STREAMS, TOKENS = 16, 400
MESSAGES = [{"role": "user", "content": "Once upon a time there was a server with several doors."}]
DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": TOKENS}),
    "responses": ("/v1/responses", {"input": MESSAGES, "max_output_tokens": TOKENS}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": TOKENS}),
    "llama-server": ("/completion", {"prompt": MESSAGES[0]["content"], "n_predict": TOKENS}),
    "ollama": ("/api/chat", {"model": "fake", "messages": MESSAGES, "options": {"num_predict": TOKENS}}),
}
CLIENT = """
import asyncio, sys
host, port, path, body, streams = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4].encode(), int(sys.argv[5])
async def one():
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    writer.write(head.encode() + body)
    while await reader.read(65536):
        pass
    writer.close()
async def main():
    await asyncio.gather(*[one() for _ in range(streams)])
asyncio.run(main())
"""


def cpu_of(url: str, path: str, body: object) -> float:
    """Microseconds of this process a token."""
    host, port = url.removeprefix("http://").split(":")
    start = time.process_time()
    subprocess.run([sys.executable, "-c", CLIENT, host, port, path, json.dumps(body), str(STREAMS)], check=True)
    return (time.process_time() - start) / (STREAMS * TOKENS) * 1e6


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    found: dict[str, list[float]] = {name: [] for name in DOORS}
    with serving(FakeLoaded(FakeEngine(step_s=0.004))) as served:
        for turn in range(rounds + 1):
            for name, (path, body) in DOORS.items():
                cost = cpu_of(served.url, path, body | {"stream": True})
                if turn:  # the first round warms up
                    found[name].append(cost)
    chat = statistics.median(found["chat"])
    for name, costs in found.items():
        middle = statistics.median(costs)
        print(f"{name:14} {middle:7.1f} us a token   {middle / chat:5.2f} of chat   (best {min(costs):.1f})")


if __name__ == "__main__":
    main()
