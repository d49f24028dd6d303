"""RAGAS on the same cases with the same judge: scores, how many are NaN, and the time. Run it in RAGAS's environment.

    pip install ragas==0.4.3 langchain-community==0.4.1 instructor==1.17.0 openai==2.54.0
    pagoda serve MODEL --served-model-name judge
    python bench/peer_ragas.py http://127.0.0.1:8000/v1 cases.jsonl --cases 10

A line of the file is a case of `pagoda eval run`, with its answer. `answer_relevancy` needs an embedder: left out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

from langchain_openai import ChatOpenAI  # noqa: E402
from ragas import EvaluationDataset, RunConfig, evaluate  # noqa: E402
from ragas.llms import LangchainLLMWrapper  # noqa: E402
from ragas.metrics import context_precision, context_recall, faithfulness  # noqa: E402

METRICS = {"faithfulness": faithfulness, "context_precision": context_precision, "context_recall": context_recall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("cases_file", type=Path)
    parser.add_argument("--cases", type=int, default=10)
    asked = parser.parse_args()
    lines = [json.loads(line) for line in asked.cases_file.read_text().splitlines()[: asked.cases]]
    samples = [
        {
            "user_input": line["question"],
            "response": line["answer"],
            "retrieved_contexts": line["contexts"],
            "reference": line["reference"],
        }
        for line in lines
    ]
    judge = ChatOpenAI(model="judge", base_url=asked.url, api_key="none", temperature=0, max_tokens=512)
    start = time.perf_counter()
    found = evaluate(
        EvaluationDataset.from_list(samples),
        metrics=list(METRICS.values()),
        llm=LangchainLLMWrapper(judge),
        run_config=RunConfig(timeout=600, max_retries=2, max_workers=16),
        show_progress=False,
    )
    seconds = time.perf_counter() - start
    report: dict[str, object] = {"cases": len(samples), "seconds": round(seconds, 1)}
    for name in METRICS:
        scores = [score[name] for score in found.scores]
        known = [score for score in scores if not math.isnan(score)]
        mean = sum(known) / len(known) if known else None
        report[name] = {"mean of the rest": mean, "NaN": len(scores) - len(known)}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
