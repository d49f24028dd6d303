"""Puts a draft model, or the model's own head, in place beside the model that it guesses for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pagoda import _native
from pagoda.backends.base import Backend, ForwardModel, LoadedModel, SharingBackend
from pagoda.backends.cores import usable_cores
from pagoda.config import EngineSettings
from pagoda.engine.device import open_head
from pagoda.engine.memory import Footprint, KVPlan
from pagoda.engine.speculation.choose import wants_draft_model, wants_head
from pagoda.engine.speculation.draft_model import DraftModelDrafter
from pagoda.engine.speculation.mtp import MtpDrafter, waiting_bytes
from pagoda.errors import CapacityError, ConfigError, FormatError, UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES, tensor_bytes
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.formats.quantized import QuantizedTensor
from pagoda.models.layers import Decoder
from pagoda.models.mtp import MtpHead
from pagoda.models.registry import load_model
from pagoda.sampling.base import SamplerProtocol
from pagoda.sources import Progress, resolve
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.types import RawTensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A draft model with what belongs to it, or a head, which has no files of its own.

    waiting_bytes: of what a head keeps of tokens that it has not computed.
    """

    name: str
    forward_model: ForwardModel
    model: LoadedModel
    checkpoint: Checkpoint | None
    drafts: type[DraftModelDrafter] | type[MtpDrafter] = DraftModelDrafter
    waiting_bytes: int = 0

    @property
    def footprint(self) -> Footprint:
        alone = Footprint.of(self.forward_model, self.model)
        name = "draft model" if self.checkpoint is not None else "MTP head"
        return replace(alone, name=name, buffer_bytes=alone.buffer_bytes + self.waiting_bytes)

    def changed(self) -> str | None:
        """What has become of its files since they were opened; None: nothing that could be seen here."""
        return None if self.checkpoint is None else self.checkpoint.changed()

    def drafter(
        self, sampler: SamplerProtocol, vocab_size: int, plan: KVPlan, settings: EngineSettings
    ) -> DraftModelDrafter | MtpDrafter:
        """The drafter. `sampler` and vocab_size are the target's."""
        return self.drafts(
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
        if self.checkpoint is not None:
            self.checkpoint.close()


def load_guessing(
    settings: EngineSettings,
    backend: Backend,
    tokenizer: Tokenizer,
    progress: Progress | None,
    target: tuple[Checkpoint, ForwardModel, LoadedModel],
) -> LoadedDraft | None:
    """What guesses beside the target, as far as the settings want it and there is one. `tokenizer` is the target's."""
    if wants_draft_model(settings):
        return load_draft(settings, backend, tokenizer, progress)
    return load_own_head(settings, backend, *target) if wants_head(settings) else None


def plan_beside(
    settings: EngineSettings, draft: LoadedDraft | None, plan: Callable[[Footprint | None], KVPlan]
) -> tuple[KVPlan, LoadedDraft | None]:
    """The KV plan with what guesses beside the target, and what that is. A head that nobody has named gives way where
    memory is short.

    Raises what `plan` does, CapacityError where there is no room.
    """
    try:
        return plan(None if draft is None else draft.footprint), draft
    except CapacityError as error:
        if draft is None or draft.drafts is not MtpDrafter or MtpDrafter.name in settings.speculation:
            raise
        log.info("without the model's own head, which would guess tokens ahead: %s", error)
        draft.close()
        return plan(None), None


def load_own_head(
    settings: EngineSettings, backend: Backend, checkpoint: Checkpoint, decoder: ForwardModel, model: LoadedModel
) -> LoadedDraft | None:
    """The target's own head in place. None: it has none that can be used, as the log says; ConfigError if it was named.

    CapacityError where memory runs out.
    """
    missing: str | None = None
    try:
        head = open_head(checkpoint, settings, decoder) if isinstance(decoder, Decoder) else None
        if head is not None and isinstance(backend, SharingBackend):
            return _placed_head(settings, backend, head, model)
        if head is not None:
            missing = "the layer that predicts several tokens (MTP) is computed on CPUs alone"
    except (FormatError, UnsupportedError) as error:
        missing = str(error)
    if MtpDrafter.name in settings.speculation:
        missing = missing or "the model has no layer that predicts several tokens (MTP)"
        raise ConfigError(f"--speculation mtp: {missing}")
    if missing is not None:
        log.info("without the model's own head, which would guess tokens ahead: %s", missing)
    return None


def _placed_head(settings: EngineSettings, backend: SharingBackend, head: MtpHead, target: LoadedModel) -> LoadedDraft:
    assert settings.kv_type != "auto"
    model = backend.load_beside(
        head,
        target,
        max_batch_tokens=settings.batch_tokens,
        max_batch_seqs=settings.num_seqs,
        kv_type=settings.kv_type,
    )
    waiting = waiting_bytes(settings.batch_tokens, head.hidden_size)
    return LoadedDraft(MtpDrafter.name, head, model, None, MtpDrafter, waiting)


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
