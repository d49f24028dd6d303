"""The default model says what transformers makes of the same file, dequantized (goldens/default_model.json)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from paged_run import PagedRun
from pagoda.backends.reference import ReferenceBackend
from pagoda.formats.checkpoint import open_checkpoint
from pagoda.models.registry import load_model

GOLDEN = Path(__file__).parent / "goldens" / "default_model.json"


def test_greedy_continuations_and_their_probabilities(default_model: Path) -> None:
    prompts = json.loads(GOLDEN.read_text())["prompts"]
    with open_checkpoint(default_model) as checkpoint:
        model = load_model(checkpoint)
        loaded = ReferenceBackend(batch_invariant=False).load(
            model, max_batch_tokens=512, max_batch_seqs=8, kv_type="f32"
        )
        run = PagedRun(model, loaded)
        logits = run.step({str(i): p["prompt"] + p["continuation"] for i, p in enumerate(prompts)})
    for i, expected in enumerate(prompts):
        rows = logits[str(i)][len(expected["prompt"]) - 1 : -1].astype(np.float64)
        assert rows.argmax(axis=-1).tolist() == expected["continuation"]
        top = rows.max(axis=-1)
        logprobs = top - (top + np.log(np.exp(rows - top[:, None]).sum(axis=-1)))
        np.testing.assert_allclose(logprobs, expected["logprobs"], atol=1e-3)
