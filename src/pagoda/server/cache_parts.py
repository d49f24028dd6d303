"""The semantic cache of a server, made from its settings."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pagoda.cache.cache import SemanticCache
from pagoda.cache.embedder import Embedder
from pagoda.cache.entry import digest
from pagoda.cache.policy import Policy
from pagoda.cache.question_log import QuestionLog
from pagoda.cache.rules import Rules, parse_rules
from pagoda.cache.stores import open_store
from pagoda.cache.verifier import Verifier, load_verifier
from pagoda.cache_settings import CacheSettings
from pagoda.client import HttpClient, list_models
from pagoda.config import cache_dir
from pagoda.crypt import Cipher
from pagoda.engine.embedder import load_embedder
from pagoda.errors import ConfigError
from pagoda.observe.metrics import Metrics
from pagoda.server.caching import Caching
from pagoda.server.question import Asks
from pagoda.server.shadow import Judge


def policy_of(settings: CacheSettings) -> Policy:
    """Raises ConfigError."""
    tags = {}
    for text in settings.cache_tags:
        tag, _, seconds = text.rpartition("=")
        if not tag or not seconds.isdecimal() or not int(seconds):
            raise ConfigError(f"--cache-tags {text!r} is not TAG=SECONDS")
        tags[tag] = float(seconds)
    rules = Rules(parse_rules(settings.cache_never, settings.cache_shorter))
    return Policy(rules, settings.cache_ttl, tags, settings.cache_sliding, settings.cache_max_temperature)


def open_cache(settings: CacheSettings, embedder: Embedder | None) -> SemanticCache:
    """The cache that the settings describe. Raises ConfigError or StoreError."""
    assert settings.cache_store is not None
    cipher = None if settings.cache_key is None else Cipher(settings.cache_key)
    verifier = verifier_for(embedder, settings.cache_verifier)
    folder = cache_dir() / "answers"
    store = open_store(settings.cache_store, folder, cipher)
    notebook = None
    if settings.cache_store != "memory" and verifier is not None:
        notebook = folder / f"evidence-{digest([settings.cache_store, verifier.about])[:12]}.json"
    return SemanticCache(
        store,
        embedder,
        verifier,
        policy_of(settings),
        max_wrong=settings.cache_max_wrong,
        max_entries=settings.cache_max_entries,
        notebook=notebook,
    )


def verifier_for(embedder: Embedder | None, path: Path | None) -> Verifier | None:
    """The verifier in `path`, or the one that comes with Pagoda where it was made for this embedder.

    Raises ConfigError for a file that was made for another.
    """
    if embedder is None:
        return None
    verifier = load_verifier(path)
    if verifier.fits(embedder):
        return verifier
    if path is not None:
        raise ConfigError(f"{path} was trained for another embedder: run `pagoda cache train` with this one")
    return None


def load_cache_embedder(name: str) -> Embedder:
    """One thread, since the engine has the others, and 8 bits, which change a cosine by 0.001 at most."""
    return load_embedder(name, threads=1, weights="q8_0")


def load_cache(settings: CacheSettings) -> SemanticCache | None:
    """The cache, with its embedder; None: the settings want none. Takes a second. Raises what loading raises."""
    if settings.cache_store is None:
        return None
    if settings.cache_judge is not None and not urlsplit(settings.cache_judge).hostname:
        raise ConfigError(f"--cache-judge {settings.cache_judge!r} is no address, such as http://127.0.0.1:8001")
    embedder = None if settings.cache_embedder == "none" else load_cache_embedder(settings.cache_embedder)
    return open_cache(settings, embedder)


def caching_of(cache: SemanticCache, settings: CacheSettings, asking: Asks, metrics: Metrics) -> Caching:
    """The layer."""
    layer = Caching(
        cache,
        asking,
        metrics.cache,
        budget=settings.cache_budget,
        shadow=settings.cache_shadow,
        log=None if settings.cache_log is None else QuestionLog(settings.cache_log),
        open_judge=None if settings.cache_judge is None else lambda: open_judge(settings),
    )
    metrics.before_collect.append(layer.update_series)
    return layer


async def open_judge(settings: CacheSettings) -> Judge:
    """The model that compares answers. Raises PagodaError when its server does not answer."""
    from pagoda.evals.judge import Judge as ModelJudge

    url, key = settings.cache_judge, settings.cache_judge_key
    assert url is not None
    name = settings.cache_judge_model or (await list_models(url, key))[0]["id"]
    return ModelJudge(lambda: HttpClient(url, key), name, concurrency=1)
