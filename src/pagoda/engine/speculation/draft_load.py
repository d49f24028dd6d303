"""Puts a draft model in place beside the model that it guesses for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pagoda import _native
from pagoda.backends.base import Backend, ForwardModel, LoadedModel
from pagoda.backends.cores import usable_cores
from pagoda.config import EngineSettings
from pagoda.engine.memory import Footprint, KVPlan
from pagoda.engine.speculation.draft_model import DraftModelDrafter
from pagoda.errors import ConfigError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.formats.quantized import QuantizedTensor
from pagoda.models.registry import load_model
from pagoda.sampling.base import SamplerProtocol
from pagoda.sources import Progress, resolve
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.types import RawTensor


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A draft model with what belongs to it."""

    name: str
    forward_model: ForwardModel
    model: LoadedModel
    checkpoint: Checkpoint

    @property
    def footprint(self) -> Footprint:
        return Footprint.of(self.forward_model, self.model)

    def drafter(
        self, sampler: SamplerProtocol, vocab_size: int, plan: KVPlan, settings: EngineSettings
    ) -> DraftModelDrafter:
        """The drafter. `sampler` and vocab_size are the target's."""
        return DraftModelDrafter(
            self.model,
            sampler,
            vocab_size=vocab_size,
            windows=self.footprint.windows,
            num_blocks=plan.draft_blocks,
            max_context=min(plan.max_context, self.forward_model.max_context),
            max_batch_tokens=settings.batch_tokens,
            max_num_seqs=settings.num_seqs,
        )

    def close(self) -> None:
        """Free everything. Idempotent."""
        self.model.close()
        self.checkpoint.close()


def load_draft(
    settings: EngineSettings, backend: Backend, tokenizer: Tokenizer, progress: Progress | None
) -> LoadedDraft:
    """Find settings.draft_model and put its weights in place. `tokenizer` is the target's.

    Raises what loading a model raises, and ConfigError where the vocabularies differ.
    """
    assert settings.draft_model is not None
    assert settings.kv_type != "auto"
    source = resolve(settings.draft_model, progress=progress)
    checkpoint = open_checkpoint(source.path)
    checkpoint.guard()
    try:
        check_vocabulary(tokenizer, load_tokenizer(checkpoint), source.name)
        served = checkpoint if settings.draft_format is None else Requantized(checkpoint, settings.draft_format.upper())
        forward_model = load_model(served, settings.max_context)
        model = backend.load(
            forward_model,
            max_batch_tokens=settings.batch_tokens,
            max_batch_seqs=settings.num_seqs,
            kv_type=settings.kv_type,
        )
        if model.state_bytes:
            raise UnsupportedError(
                f"--draft-model {source.name} has recurrent layers, whose state does not go back when a draft is "
                "rejected; take one without"
            )
        for name in checkpoint.tensors:
            checkpoint.release(name)
    except BaseException:
        checkpoint.close()
        raise
    return LoadedDraft(source.name, forward_model, model, checkpoint)


def check_vocabulary(target: Tokenizer, draft: Tokenizer, name: str) -> None:
    """Every token must be the same in both. ConfigError names the first that is not."""
    remedy = "take a draft model of the same family, whose vocabulary is the same"
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"--draft-model {name} has {draft.vocab_size} tokens, the model has {target.vocab_size}; {remedy}"
        )
    here, there = target.vocabulary, draft.vocabulary
    if (here.spelling, list(here.types), list(here.tokens)) == (there.spelling, list(there.types), list(there.tokens)):
        return
    for i in range(target.vocab_size):
        ours, theirs = target.token_bytes(i), draft.token_bytes(i)
        if ours != theirs:
            raise ConfigError(
                f"--draft-model {name}: token {i} is {theirs!r} there and {ours!r} in the model; {remedy}"
            )


class Requantized:
    """A checkpoint with matrices in another block format, where that is smaller. Its tensors are made once, at once."""

    def __init__(self, checkpoint: Checkpoint, type: str) -> None:
        self.kind = checkpoint.kind
        self.architecture = checkpoint.architecture
        self.path = checkpoint.path
        self.metadata: Mapping[str, Any] = checkpoint.metadata
        self.tensors: dict[str, RawTensor] = {}
        for name, tensor in checkpoint.tensors.items():
            self.tensors[name] = _requantized(tensor, type)
            checkpoint.release(name)


def _requantized(tensor: RawTensor, type: str) -> RawTensor:
    columns = tensor.shape[-1]
    smaller = (
        not isinstance(tensor, QuantizedTensor)
        and len(tensor.shape) > 1
        and columns % BLOCK_TYPES[type].elements == 0
        and BLOCK_TYPES[type].bits_per_weight < BLOCK_TYPES[tensor.type].bits_per_weight
    )
    if not smaller:
        return tensor
    rows = tensor.rows()
    data = np.empty((len(rows), tensor_bytes(type, (columns,))), np.uint8)
    chunk = max(1, 2**24 // columns)  # rows that are floats at once
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        floats = np.empty((len(part), columns), np.float32)
        _native.dequantize(part.reshape(-1), tensor.type, columns, floats)
        wrong = _native.quantize(floats, type, data[start : start + chunk], threads=usable_cores())
        if wrong >= 0:
            raise ConfigError(f"--draft-format: {tensor.name} holds {floats.flat[wrong]}, which {type} cannot")
    return replace(tensor, type=type, data=data.reshape(-1))
