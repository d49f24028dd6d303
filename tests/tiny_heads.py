"""Tiny models with a head that predicts one token more (MTP), and what engines draft with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM
from pagoda.engine.drafters import DraftQuery, Proposal
from pagoda.engine.speculation.mtp import MtpDrafter
from tiny_models import TINY, TinyModel

HEADED = ("glm4moe", "deepseek3", "glm4lite", "qwen35", "qwen35moe", "qwen3next", "mimo")
PROMPTS = [[(37 * i + 11 + 7 * j) % 200 for i in range(20 + 17 * j)] for j in range(4)]
SETTINGS: dict[str, Any] = {"kv_memory_bytes": 1 << 22, "max_context": 128}


def with_head(name: str) -> TinyModel:
    """A tiny model, and one layer more that predicts."""
    spec = TINY[name]
    return replace(spec, config={**spec.config, "num_nextn_predict_layers": 1})


def headed_llm(path: Path, **settings: Any) -> LLM:
    return LLM(str(path), **{"backend": "cpu", "speculation": ("mtp",), **SETTINGS, **settings})


def check_as_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are checked whole, whatever they cost: tiny models' times say nothing."""
    monkeypatch.setattr("pagoda.engine.load.Pacer", lambda: None)


class Recorded:
    """What heads were asked, and what they said: (certain tokens, draft)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drafts: list[tuple[list[int], list[int]]] = []
        propose = MtpDrafter.propose

        def recording(drafter: MtpDrafter, queries: list[DraftQuery]) -> list[Proposal]:
            proposals = propose(drafter, queries)
            drafter.check()
            for query, proposal in zip(queries, proposals, strict=True):
                self.drafts.append((query.tokens.tolist(), list(proposal.tokens)))
            return proposals

        monkeypatch.setattr(MtpDrafter, "propose", recording)
