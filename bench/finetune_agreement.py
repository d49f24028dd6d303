"""Whether the held-out loss that training reports is the one that the served adapter has.

    python bench/finetune_agreement.py ADAPTER

ADAPTER is a folder that `pagoda finetune` made. The examples that it held out are asked of the engine, with the adapter
and without, for the log probability of each learned token. Prints JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pagoda.engine.llm import LLM
from pagoda.finetune.data.render import Example
from pagoda.finetune.prepare import prepare
from pagoda.finetune.settings import FinetuneSettings
from pagoda.sources import resolve
from pagoda.types import SamplingParams


def settings_of(record: dict[str, Any]) -> FinetuneSettings:
    """The run's settings, paths as paths."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in record["settings"].items()
    }
    for key in ("data", "held_out_data"):
        values[key] = tuple(Path(path) for path in values[key])
    return FinetuneSettings(**values)


def served_loss(llm: LLM, examples: list[Example], adapter: str | None) -> float:
    """Nats a learned token, from the engine's own log probabilities of the prompt."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs = llm.generate([example.ids.tolist() for example in examples], params, adapter=adapter)
    total = 0.0
    for example, output in zip(examples, outputs, strict=True):
        assert output.prompt_logprobs is not None
        for trained, found in zip(example.trained, output.prompt_logprobs, strict=True):
            if trained:
                assert found is not None
                total -= found.chosen.logprob
    return total / sum(example.num_trained for example in examples)


def main() -> None:
    folder = Path(sys.argv[1])
    record = json.loads((folder / "pagoda_finetune.json").read_text())
    model = record["base"]["path"]
    examples = prepare(resolve(model), settings_of(record)).data.held_out
    llm = LLM(model, lora=(f"tuned={folder}",), max_context=2048)
    trained, served, base = (
        record["best_held_out_loss"],
        *(served_loss(llm, examples, name) for name in ("tuned", None)),
    )
    found = {"examples": len(examples), "trainer": trained, "served": served, "base": base}
    print(json.dumps({**found, "difference": served / trained - 1}))


if __name__ == "__main__":
    main()
