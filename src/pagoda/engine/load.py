"""From settings to an engine that is ready to step: what the server, the command line and `LLM` start from."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pagoda
from pagoda.adapters.place import Base
from pagoda.backends.base import Backend, ForwardModel, LoadedModel
from pagoda.config import EngineSettings
from pagoda.engine.adapter_folder import AdapterFolder
from pagoda.engine.adapters import AdapterStore, open_store, parse_named
from pagoda.engine.device import make_backend, open_forward_model
from pagoda.engine.drafters import Drafter
from pagoda.engine.encoder_engine import LoadedEncoder, load_encoder_engine
from pagoda.engine.engine import Engine
from pagoda.engine.limits import EngineLimits
from pagoda.engine.memory import Footprint, KVPlan, available_memory, plan_kv
from pagoda.engine.offload import KVOffload, open_offload
from pagoda.engine.speculation.choose import check_speculation, choose_drafters
from pagoda.engine.speculation.draft_load import LoadedDraft, load_guessing, plan_beside
from pagoda.engine.speculation.pacing import Pacer
from pagoda.engine.thread import EngineThread
from pagoda.errors import ConfigError
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.kv.block_files import BlockFiles
from pagoda.kv.host_blocks import HostBlocks
from pagoda.models.bert import is_encoder
from pagoda.models.layers import Decoder
from pagoda.models.pooling import Pooling, read_pooling
from pagoda.models.registry import fallback_template, family_of
from pagoda.models.reranker import is_reranker, yes_no_head
from pagoda.sampling.base import SamplerProtocol
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.top_k import TopKSampler
from pagoda.sources import LocalModel, Progress, resolve
from pagoda.text import sandbox
from pagoda.text.chat import ChatTemplate
from pagoda.text.framing import VectorTraits
from pagoda.text.load import chat_template_or_reason, load_text
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.types import BLOCK_SIZE

log = logging.getLogger(__name__)

MIN_ROWS = 32  # of logits in one step, so that prompt logprobs come in chunks even where few sequences run


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """A model with all that belongs to it. `engine` is not started: the server starts it, `LLM` steps `core`."""

    engine: EngineThread
    core: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None  # None: the model has none, `no_chat_reason` says more
    no_chat_reason: str | None
    model_name: str
    architecture: str
    source: LocalModel
    settings: EngineSettings
    kv_plan: KVPlan
    model: LoadedModel
    checkpoint: Checkpoint
    adapters: AdapterStore
    hidden_size: int
    draft: LoadedDraft | None = None

    @property
    def load_text(self) -> Callable[[], tuple[Tokenizer, ChatTemplate | None, str | None]]:
        """Makes the tokenizer and the chat template once more; may be pickled."""
        return partial(load_text, self.source.path, fallback_template(self.checkpoint))

    @property
    def max_context(self) -> int:
        return self.core.max_context

    @property
    def traits(self) -> VectorTraits:
        """What /v1/embeddings and its relatives need to know."""
        pooling, longest = self.core.pooling, self.core.max_context - 1
        if pooling.head is not None:
            return VectorTraits("reranker", longest, pooling.head.size)
        longest = min(pooling.max_tokens or longest, longest)
        normalize, prompt, lowercase = pooling.normalize, pooling.prompt, pooling.lowercase
        return VectorTraits("embedding", longest, self.hidden_size, normalize, prompt=prompt, lowercase=lowercase)

    @property
    def cache_config(self) -> dict[str, str]:
        """Facts about the KV cache, for metrics."""
        return {
            "block_size": str(BLOCK_SIZE),
            "cache_dtype": self.settings.kv_type,
            "enable_prefix_caching": str(self.settings.prefix_caching),
            "gpu_memory_utilization": str(self.settings.memory_utilization),
            "num_gpu_blocks": str(sum(self.kv_plan.num_blocks)),
            "sliding_window": str(next((w for w in self.kv_plan.footprint.windows if w is not None), None)),
        }

    @property
    def kv_store(self) -> BlockFiles | HostBlocks | None:
        """Where KV of idle prefixes is kept besides the KV cache."""
        return None if self.core.offload is None else self.core.offload.store

    def changed(self) -> str | None:
        """What has become of the model's files since they were opened; None: nothing that could be seen here."""
        drafts = None if self.draft is None else self.draft.changed()
        return self.checkpoint.changed() or drafts

    def content_digest(self) -> str:
        """What tells this model from others of its name."""
        return self.checkpoint.content_digest()

    def close(self) -> None:
        """Stop the engine and free everything. Idempotent."""
        self.engine.stop()
        self.core.close()
        if self.draft is not None:
            self.draft.close()
        self.model.close()
        self.checkpoint.close()


def load_engine(
    settings: EngineSettings,
    *,
    progress: Progress | None = None,
    source: LocalModel | None = None,
    drafters: Sequence[Drafter] | None = None,
    checkpoint: Checkpoint | None = None,
) -> LoadedEngine:
    """Find the model, put its weights in place, size the KV cache.

    `source` is what `settings.model` resolves to, where that is known already, and `checkpoint` its files, where they
    are open; `drafters` are the engine's. Raises
    SourceError, FormatError, UnsupportedError or CapacityError, each with the remedy.
    """
    start = time.perf_counter()
    check_speculation(settings)
    if settings.state_interval % BLOCK_SIZE:
        raise ConfigError(f"--state-interval {settings.state_interval} must be a multiple of {BLOCK_SIZE}")
    backend = make_backend(settings)
    settings = settings.for_device(gpu=backend.available_memory() is not None, kv_type=backend.kv_type)
    source = source or resolve(settings.model, progress=progress)
    checkpoint = checkpoint or open_checkpoint(source.path)
    checkpoint.guard()
    try:
        loaded = _load(settings, backend, source, checkpoint, drafters, progress)
    except BaseException:
        checkpoint.close()
        raise
    log.info("%s is ready after %.2f s; %s", loaded.model_name, time.perf_counter() - start, loaded.kv_plan)
    return loaded


def load_served(
    settings: EngineSettings, *, progress: Progress | None = None, source: LocalModel | None = None
) -> LoadedEngine | LoadedEncoder:
    """As `load_engine`, but encoders, which only make embeddings, are taken too."""
    source = source or resolve(settings.model, progress=progress)
    checkpoint = open_checkpoint(source.path)
    if not is_encoder(checkpoint):
        return load_engine(settings, source=source, checkpoint=checkpoint)
    checkpoint.guard()
    try:
        return load_encoder_engine(settings, source, checkpoint)
    except BaseException:
        checkpoint.close()
        raise


def _load(
    settings: EngineSettings,
    backend: Backend,
    source: LocalModel,
    checkpoint: Checkpoint,
    drafters: Sequence[Drafter] | None,
    progress: Progress | None,
) -> LoadedEngine:
    forward_model = open_forward_model(checkpoint, settings)
    device_memory = backend.available_memory()
    available = available_memory() if device_memory is None else device_memory
    model, tokenizer_job = _place(settings, backend, forward_model, checkpoint)
    draft: LoadedDraft | None = None
    try:
        for name in checkpoint.tensors:  # packed now: let the OS have the file's pages back
            checkpoint.release(name)
        tokenizer = tokenizer_job.result()
        chat_template, no_chat_reason = chat_template_or_reason(checkpoint, tokenizer, fallback_template(checkpoint))
        pooling = _pooling(checkpoint, forward_model, tokenizer, source.name)
        if drafters is None:
            draft = load_guessing(settings, backend, tokenizer, progress, (checkpoint, forward_model, model))
        adapters = _adapters(settings, checkpoint, forward_model, model)

        def plan(beside: Footprint | None) -> KVPlan:
            footprint = Footprint.of(forward_model, model, beside, adapters.reserved_bytes)
            return plan_kv(footprint, settings, forward_model.max_context, available, fill=device_memory is not None)

        kv_plan, draft = plan_beside(settings, draft, plan)
        pace = Pacer() if drafters is None else None  # who brings drafters has them checked whole
        if drafters is None:
            drafters = choose_drafters(settings.speculation, asynchronous=model.asynchronous)
        sampler = (Sampler if model.ranker is None else TopKSampler)(forward_model.vocab_size, isa=settings.isa)
        if draft is not None:
            drafters = (*drafters, draft.drafter(sampler, forward_model.vocab_size, kv_plan, settings))
        offload = open_offload(settings, model, _kv_identity(settings, backend, checkpoint))
        core = _engine(settings, forward_model, model, tokenizer, sampler, kv_plan, drafters, pace, pooling, offload)
    except BaseException:
        if draft is not None:
            draft.close()
        model.close()
        raise
    return LoadedEngine(
        engine=EngineThread(core),
        core=core,
        tokenizer=tokenizer,
        chat_template=chat_template,
        no_chat_reason=no_chat_reason,
        model_name=source.name,
        architecture=checkpoint.architecture,
        source=source,
        settings=settings,
        kv_plan=kv_plan,
        model=model,
        checkpoint=checkpoint,
        hidden_size=_hidden_size(forward_model),
        draft=draft,
        adapters=adapters,
    )


def _place(
    settings: EngineSettings, backend: Backend, forward_model: ForwardModel, checkpoint: Checkpoint
) -> tuple[LoadedModel, Future[Tokenizer]]:
    """The model with its weights in place, and what came of building the tokenizer meanwhile."""
    assert settings.kv_type != "auto"
    with ThreadPoolExecutor(1) as pool:
        tokenizer_job = pool.submit(load_tokenizer, checkpoint)
        sandbox.start()  # for the chat template
        model = backend.load(
            forward_model,
            max_batch_tokens=settings.batch_tokens,
            max_batch_seqs=_max_rows(settings),
            kv_type=settings.kv_type,
        )
    return model, tokenizer_job


def _max_rows(settings: EngineSettings) -> int:
    return max(settings.num_seqs, MIN_ROWS)


def _adapters(
    settings: EngineSettings, checkpoint: Checkpoint, forward_model: ForwardModel, model: LoadedModel
) -> AdapterStore:
    """The adapters of `--lora`, and room for more."""
    assert isinstance(forward_model, Decoder)
    family = family_of(checkpoint)
    base = Base(forward_model, family, checkpoint.kind == "gguf", family.gguf)
    type = settings.lora_type
    if type == "auto":
        types = {matrix.type for block in forward_model.blocks for matrix in block.matrices}
        type = "f32" if types == {"F32"} else "bf16" if types <= {"F32", "F16", "BF16"} else "int8"
    store = open_store(
        model,
        base,
        type=type,
        max_in_memory=settings.max_cpu_loras,
        max_bytes=settings.lora_memory_bytes,
        folder=None if settings.lora_dir is None else AdapterFolder(settings.lora_dir),
    )
    for given in settings.lora:
        store.add(*parse_named(given))
    return store


def _pooling(checkpoint: Checkpoint, model: ForwardModel, tokenizer: Tokenizer, name: str) -> Pooling:
    """How the prompt of a pooled request becomes a vector, or a score."""
    if isinstance(model, Decoder) and is_reranker(checkpoint, name):
        answers = (tokenizer.encode(text, add_special=False) for text in ("yes", "no"))
        return Pooling("last", normalize=False, head=yes_no_head(model.output, *answers))
    return read_pooling(checkpoint, "last")


def _hidden_size(model: ForwardModel) -> int:
    return model.embedding.shape[1] if isinstance(model, Decoder) else 0


def _engine(
    settings: EngineSettings,
    forward_model: ForwardModel,
    model: LoadedModel,
    tokenizer: Tokenizer,
    sampler: SamplerProtocol,
    kv_plan: KVPlan,
    drafters: Sequence[Drafter],
    pace: Pacer | None,
    pooling: Pooling,
    offload: KVOffload | None,
) -> Engine:
    limits = EngineLimits(
        max_context=kv_plan.max_context,
        windows=kv_plan.footprint.windows,
        num_blocks=kv_plan.num_blocks,
        num_states=kv_plan.num_states,
        state_interval=settings.state_interval,
        max_batch_tokens=settings.batch_tokens,
        max_num_seqs=settings.num_seqs,
        max_rows=_max_rows(settings),
        max_loras=settings.max_loras,
    )
    return Engine(
        model,
        tokenizer,
        sampler,
        limits,
        vocab_size=forward_model.vocab_size,
        prefix_caching=settings.prefix_caching,
        seed=settings.seed,
        max_logprobs=settings.max_logprobs,
        drafters=drafters,
        pace=pace,
        pooling=pooling,
        offload=offload,
    )


def _kv_identity(settings: EngineSettings, backend: Backend, checkpoint: Checkpoint) -> str:
    """What keys and values depend on besides tokens and adapters: equal where one process can use another's."""
    products = settings.activation_type, settings.bf16_products
    computed = (backend.name, getattr(backend, "isa", None), *products, settings.batch_invariant)
    parts = (
        pagoda.__version__,
        checkpoint.content_digest(),
        settings.kv_type,
        settings.rope_scaling,
        settings.rope_theta,
        settings.tensor_parallel,
    )
    return hashlib.blake2b(repr(parts + computed).encode(), digest_size=16).hexdigest()
