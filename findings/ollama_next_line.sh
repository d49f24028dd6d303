#!/usr/bin/env bash
# ollama 0.6.3 (PyPI) on httpx 0.28.1: a stream breaks at U+0085 in an answer.
#
# Ollama streams a JSON object a line. Its Python client takes the lines from httpx's `iter_lines`, which ends lines as
# Python's `str.splitlines` does: also at U+0085 (next line), U+2028 and U+2029. JSON does not escape these, so one
# that a model writes into its answer cuts a line in two, and the half is no JSON. (Go's encoder escapes the last two,
# other servers' do not.)
#
# Seen: of an answer "a<U+0085>b" the client raises JSONDecodeError, while the same line, read up to its line feed, is
# valid JSON. Without a stream the same answer is read.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet ollama==0.6.3 httpx==0.28.1
"$folder/bin/python" - <<'END'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import ollama

TEXT = "a\u0085b"
ANSWER = {"model": "m", "message": {"role": "assistant", "content": TEXT}, "done": True}
LINE = json.dumps(ANSWER, ensure_ascii=False) + "\n"
assert [json.loads(line) for line in LINE.split("\n") if line] == [ANSWER]


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        self.wfile.write(LINE.encode())

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = ollama.Client(f"http://127.0.0.1:{server.server_port}")
asked = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
whole = client.chat(**asked).message.content
try:
    streamed = repr("".join(part.message.content for part in client.chat(**asked, stream=True)))
except json.JSONDecodeError as error:
    streamed = f"JSONDecodeError: {error}"
print(f"whole: {whole!r}; streamed: {streamed}")
assert whole == TEXT and streamed.startswith("JSONDecodeError"), "ollama or httpx behaves otherwise now"
END
