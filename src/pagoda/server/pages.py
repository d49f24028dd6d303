"""The page that talks to the model, and the one that lists the API: files as they lie in page/, nothing from elsewhere.

They are open to everybody, whatever keys there are: what they ask of the API needs one all the same.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No inline code, no other host; style attributes that scripts set are no inline style.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@cache
def files(folder: Path = FOLDER) -> dict[str, tuple[bytes, str, str]]:
    """Name → content, type and tag of each file of a page."""
    found = {}
    for path in folder.iterdir():
        if path.suffix in TYPES:
            content = path.read_bytes()
            found[path.name] = content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return found


def answer_file(request: Request, name: str, folder: Path = FOLDER) -> Response:
    """The file, or 304 where the browser has it. HTTPException 404: there is none."""
    if name not in files(folder):
        raise HTTPException(404)
    content, media_type, tag = files(folder)[name]
    headers = {**HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers={**headers, "Content-Type": media_type})


async def chat_page(request: Request) -> Response:
    """A page to talk to the model."""
    return answer_file(request, "index.html")


async def docs_page(request: Request) -> Response:
    """A page that lists the API."""
    return answer_file(request, "docs.html")


async def page_file(request: Request) -> Response:
    """What the pages consist of."""
    return answer_file(request, request.path_params["name"])


ROUTES = [Route("/", chat_page), Route("/docs", docs_page), Route("/page/{name}", page_file)]
OPEN_PATHS = {"/", "/docs", *(f"/page/{name}" for name in files())}
