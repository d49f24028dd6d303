"""An HTTP server of files from memory, with the faults that downloads meet."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """`files` by path; faults apply to every file. `requests` lists (path, Range header)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True  # whether Range is honoured
    drop_after: list[int] = field(default_factory=list)  # bytes sent before the connection ends, one a request
    statuses: list[int] = field(default_factory=list)  # error answers, one a request, before files are served
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serve_files(files: dict[str, bytes]) -> Iterator[FileServer]:
    """A server on a free port of this machine until the block ends."""
    state = FileServer(files=files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, state)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(handler: BaseHTTPRequestHandler, state: FileServer) -> None:
    asked = handler.headers.get("Range")
    state.requests.append((handler.path, asked))
    body = state.files.get(handler.path)
    if state.statuses or body is None:
        handler.send_error(state.statuses.pop(0) if state.statuses else 404)
        return
    start = int(match[1]) if state.ranges and asked and (match := re.fullmatch(r"bytes=(\d+)-", asked)) else 0
    if start and start >= len(body):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(body)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Type", "text/html" if handler.path.endswith("/") else "application/octet-stream")
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start))
    handler.end_headers()
    end = start + state.drop_after.pop(0) if state.drop_after else len(body)
    handler.wfile.write(body[start:end])
