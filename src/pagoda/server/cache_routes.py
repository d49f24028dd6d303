"""What people ask of the cache itself, over HTTP: to forget, and that a hit was wrong."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagoda.cache.store import Selector, StoreError
from pagoda.errors import UnavailableError
from pagoda.server.caching import Caching
from pagoda.server.failures import json_response
from pagoda.server.record import record_of
from pagoda.server.routes import check_admin, service_of

SELECTED_BY = ("all", "id", "model", "older_than", "tag", "tenant")
MAX_DIGITS = 12  # of seconds


def caching_of(request: Request) -> Caching:
    """The server's cache. HTTPException 404 where there is none."""
    caching = service_of(request).model().caching
    if caching is None:
        raise HTTPException(404, "this server has no semantic cache: start it with --cache sqlite")
    return caching


async def mark_wrong(request: Request) -> Response:
    """The answer of this entry was wrong for what was asked. Tenants may say so of their own entries."""
    record = record_of(request.scope)
    selector = Selector(id=request.path_params["id"], tenant=None if record.admin else record.tenant)
    cache = caching_of(request).cache
    try:
        found = await asyncio.to_thread(cache.mark_wrong, selector)
    except StoreError as error:
        raise UnavailableError(str(error), retry_after=1.0) from None
    if not found:
        raise HTTPException(404, "there is no such entry")
    return json_response({"id": selector.id, "deleted": True})


async def delete_entries(request: Request) -> Response:
    """Remove entries by id, tag, model, or age in seconds; of all tenants. For who has the admin key."""
    check_admin(request)
    query = request.query_params
    if not query or set(query) - set(SELECTED_BY):
        raise HTTPException(400, f"say which entries, by {', '.join(SELECTED_BY)}")
    older = query.get("older_than")
    if older is not None and not (older.isascii() and older.isdecimal() and len(older) <= MAX_DIGITS):
        raise HTTPException(400, f"older_than={older!r} is not a number of seconds")
    cache = caching_of(request).cache
    selector = Selector(
        id=query.get("id"),
        tag=query.get("tag"),
        model=query.get("model"),
        tenant=query.get("tenant"),
        created_before=None if older is None else cache.now() - int(older),
    )
    try:
        count = await asyncio.to_thread(cache.store.delete, selector)
    except StoreError as error:
        raise UnavailableError(str(error), retry_after=1.0) from None
    return json_response({"deleted": count})


ROUTES = [
    Route("/v1/cache/entries/{id}/wrong", mark_wrong, methods=["POST"]),
    Route("/v1/cache/entries", delete_entries, methods=["DELETE"]),
]
