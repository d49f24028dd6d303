"""GPTCache on the stream that `bench/cache.py stream PAIRS --write FILE` wrote, with the same vectors.

    python -m venv peer && peer/bin/pip install gptcache==0.1.44 faiss-cpu numpy
    peer/bin/python bench/peer_gptcache.py FILE.npz [--thresholds 0.8,0.9,0.95]

Its usual parts: SQLite for answers, FAISS for vectors, the distance of both questions' vectors as their similarity. A
question that is no hit is kept with its group as the answer; a hit of another group is wrong where labels tell both
groups apart. FAISS gives squared Euclidean distances d = 2 - 2 cos of these vectors, from 0 to 4, and GPTCache calls
(4 - d) / 4 the similarity: its default threshold of 0.8 is a cosine of 0.6, 0.95 one of 0.9.
"""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gptcache import Cache, Config
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--thresholds", default="0.8,0.9,0.95,0.975,0.99")
    args = parser.parse_args()
    given = np.load(args.stream, allow_pickle=False)
    asked = json.loads(str(given["asked"]))  # [[text, group] …]
    vectors = dict(zip(json.loads(str(given["texts"])), given["vectors"], strict=True))
    apart = {frozenset(pair) for pair in json.loads(str(given["apart"]))}
    print(f"{'threshold':>9} {'saved':>8} {'wrong of hits':>14} {'unknown':>8} {'ms a question':>14}")
    for threshold in map(float, args.thresholds.split(",")):
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder)  # after GPTCache's own, which writes its index there
        run(asked, vectors, apart, threshold, folder)


def run(
    asked: list[list[Any]], vectors: dict[str, Any], apart: set[frozenset[int]], threshold: float, folder: Path
) -> None:
    cache = Cache()
    width = len(next(iter(vectors.values())))
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: vectors[text],
        data_manager=get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{folder}/answers.db"),
            VectorBase("faiss", dimension=width, index_path=str(folder / "faiss.index")),
        ),
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(similarity_threshold=threshold),
    )
    hits = wrong = unknown = 0
    start = time.perf_counter()
    for text, group in asked:
        found = get(text, cache_obj=cache)
        if found is None:
            put(text, str(group), cache_obj=cache)
            continue
        hits += 1
        if int(found) != group:
            is_known = frozenset((int(found), group)) in apart
            wrong += is_known
            unknown += not is_known
    seconds = time.perf_counter() - start
    share = wrong / max(hits, 1)
    print(
        f"{threshold:>9g} {hits / len(asked):>8.2%} {share:>14.2%} {unknown:>8} {1000 * seconds / len(asked):>14.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
