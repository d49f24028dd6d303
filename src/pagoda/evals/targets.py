"""What answers the questions of a test set: a function of the user's, or a server.

A function takes the question and returns the answer, or {"answer": …, "contexts": […]}; it may be async. A URL that
ends in /v1 is asked as an OpenAI-compatible server; any other gets {"question": …} as JSON and answers alike.
"""

from __future__ import annotations

import asyncio
import inspect
import pkgutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from pagoda.client import Endpoint, HttpClient, HttpError, list_models
from pagoda.errors import ConfigError, PagodaError
from pagoda.evals.cases import Case

CHAT = "/v1/chat/completions"

Answer = Callable[[Case], Awaitable[Case]]


@contextmanager
def open_target(target: str) -> Iterator[Answer]:
    """Raises ConfigError for a target that is neither a URL nor a function that can be imported."""
    if "://" not in target:
        yield partial(_call, _import(target))
        return
    parts = urlsplit(target)
    base, path = f"{parts.scheme}://{parts.netloc}", parts.path or "/"
    if path.rstrip("/").endswith("/v1"):
        model = asyncio.run(list_models(target))[0]["id"]
        yield partial(_chat, target, model)
    else:
        HttpClient(base)  # a bad URL is known at once
        yield partial(_post, base, path)


def _import(target: str) -> Callable[[str], Any]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--target: {target!r} is not a URL or module:function: {error}") from None
    finally:
        sys.path.pop(0)
    return function  # type: ignore[no-any-return]


async def _call(function: Callable[[str], Any], case: Case) -> Case:
    """A plain function runs on a thread, so that it may take its time."""
    found = (
        function(case.question)
        if inspect.iscoroutinefunction(function)
        else await asyncio.to_thread(function, case.question)
    )
    return _answered(case, await found if inspect.isawaitable(found) else found)


async def _post(base: str, path: str, case: Case) -> Case:
    return _answered(case, orjson.loads(await _ask(base, path, {"question": case.question, "id": case.id})))


async def _chat(url: str, model: str, case: Case) -> Case:
    return _said(case, await _ask(url, CHAT, question(case) | {"model": model}))


async def ask_model(endpoint: Endpoint, max_tokens: int, case: Case) -> Case:
    """The case with the answer of the model behind an endpoint, from the passages where the case has some."""
    return _said(case, await endpoint.post(CHAT, orjson.dumps(question(case) | {"max_tokens": max_tokens})))


def question(case: Case) -> dict[str, Any]:
    """The request for the likeliest answer."""
    text = "\n\n".join([*(case.contexts or ()), case.question])
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "seed": 0}


def _said(case: Case, body: bytes) -> Case:
    return _answered(case, orjson.loads(body)["choices"][0]["message"]["content"] or "")


async def _ask(url: str, path: str, body: dict[str, Any]) -> bytes:
    client = HttpClient(url)
    try:
        return await client.post(path, orjson.dumps(body))
    except (HttpError, OSError) as error:
        raise PagodaError(f"--target: {url}{path}: {error}") from None
    finally:
        client.close()


def _answered(case: Case, found: Any) -> Case:
    if isinstance(found, str):
        return case.answered(found, None)
    try:
        contexts = found.get("contexts")
        return case.answered(str(found["answer"]), None if contexts is None else tuple(map(str, contexts)))
    except (AttributeError, KeyError, TypeError):
        raise PagodaError(f"--target: {found!r:.200} is neither a text nor has it an 'answer'") from None
