"""What the routes share: the model once it is loaded, the onion that answers, and the phase of the server's life.

starting ──attach──► ready ──drain──► draining
                       └──give_up──► broken
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import asdict, replace
from typing import Any, Literal, Protocol

from pagoda.cache.cache import SemanticCache
from pagoda.config import ServerSettings
from pagoda.engine.adapters import AdapterStore
from pagoda.errors import EngineError, UnavailableError
from pagoda.kv.block_files import BlockFiles
from pagoda.kv.host_blocks import HostBlocks
from pagoda.observe.alerts import Alerts
from pagoda.observe.cost import CostSettings
from pagoda.observe.metrics import Metrics
from pagoda.observe.own_series import HOST_EVENTS
from pagoda.server.accounts import Accounts, make_ledger
from pagoda.server.adapters import Adapters, FreshAdapters
from pagoda.server.admission import Admission, PromptSpeed
from pagoda.server.bridge import EngineBridge, EngineThread
from pagoda.server.budgets import Budgets
from pagoda.server.cache_parts import caching_of
from pagoda.server.caching import Caching
from pagoda.server.call import Call, DeltaStream, Layer, Serve, fold
from pagoda.server.ceilings import make_history, roofline_of
from pagoda.server.constraints import Constraints
from pagoda.server.counted import Counted
from pagoda.server.deadlines import Deadlines
from pagoda.server.intact import Intact
from pagoda.server.key_store import KeyStore
from pagoda.server.prefix_events import PrefixEvents
from pagoda.server.prompts import ChatTemplate, Tokenizer
from pagoda.server.question import Asking, ModelIdentity
from pagoda.server.readers import Readers
from pagoda.server.reading import Reader, ReaderLimits, ServedNames, TextLoader, unknown_model
from pagoda.server.response_store import ResponseStore
from pagoda.text.framing import VectorTraits

STARTING_RETRY_S = 2.0
LONG_BODIES = 4  # taken in or waiting to be read at once; further ones stay with their clients, not in memory
MEASURE_AFTER_S = 2.0  # after start: what steps cost is found out when nobody waits for the server any more
STALLED_S = 60.0  # work, but no step for that long: the engine does not turn


class Loaded(Protocol):
    """What the server needs of `pagoda.engine.load.LoadedEngine`."""

    @property
    def engine(self) -> EngineThread: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> ChatTemplate | None: ...

    @property
    def no_chat_reason(self) -> str | None: ...

    @property
    def load_text(self) -> TextLoader: ...

    @property
    def model_name(self) -> str: ...

    @property
    def max_context(self) -> int: ...

    @property
    def adapters(self) -> AdapterStore: ...

    @property
    def traits(self) -> VectorTraits: ...

    @property
    def kv_store(self) -> BlockFiles | HostBlocks | None: ...

    @property
    def cache_config(self) -> dict[str, str]: ...

    def changed(self) -> str | None: ...

    def content_digest(self) -> str: ...

    def close(self) -> None: ...


class Model:
    """A loaded model behind everything that answers for it."""

    def __init__(
        self,
        loaded: Loaded,
        settings: ServerSettings,
        cost: CostSettings,
        key_store: KeyStore | None = None,
        cache: SemanticCache | None = None,
    ) -> None:
        self.name = settings.served_model_name or loaded.model_name
        self.created = int(time.time())
        self.loaded = loaded
        self.engine = loaded.engine
        self.tokenizer = loaded.tokenizer
        self.max_context = loaded.max_context
        self.store = loaded.adapters
        self.traits = loaded.traits
        self.max_at_once = settings.max_queue_requests
        self.readers = self._make_readers(settings)
        self.metrics = Metrics(
            self.name,
            loaded.max_context,
            cache_config=loaded.cache_config,
            compat=settings.metrics_compat,
            ledger=make_ledger(cost),
        )
        self.history = make_history(loaded)
        self.alerts = Alerts(self.metrics)
        self.accounts = Accounts(self.name, self.metrics, settings)
        self._measuring = threading.Timer(MEASURE_AFTER_S, self._find_roofline)
        speed = PromptSpeed()
        self._watch(speed)
        self.bridge = EngineBridge(self.engine)
        self.prefix_events = PrefixEvents(self.engine, self.name)
        self.admission = Admission(settings.max_queue_requests, settings.max_queue_tokens, speed)
        self.constraints = Constraints(loaded.tokenizer)
        self.budgets = None if key_store is None else Budgets(key_store, self.name, self.metrics)
        self.caching: Caching | None = None  # None: there is no semantic cache
        if cache is not None:
            identity = ModelIdentity(self.name, loaded.content_digest(), lambda name: self.store.find(name).digest)
            asking = Asking(cache.policy, identity, loaded.tokenizer.decode)
            self.caching = caching_of(cache, settings, asking, self.metrics)
        layers: list[Layer] = [  # outermost first
            Intact(loaded.changed),
            self._validated,
            FreshAdapters(self.store),
            *([] if self.budgets is None else [self.budgets]),
            *([] if self.caching is None else [self.caching]),
            Adapters(self.store),
            Deadlines(self.admission, speed, self.history, self.metrics),
            self.constraints,
            Counted(self.metrics),
            self.admission,
        ]
        self.serve: Serve = fold(layers, self.bridge.open)

    def _make_readers(self, settings: ServerSettings) -> Readers:
        """What makes calls of the requests' bodies."""
        loaded = self.loaded
        limits = ReaderLimits(
            self.name,
            loaded.max_context,
            settings.max_queue_tokens,
            settings.tool_call_format,
            settings.reasoning_format,
            ServedNames(self.name, self.store),
            loaded.traits,
        )
        reader = Reader((loaded.tokenizer, loaded.chat_template, loaded.no_chat_reason), limits)
        return Readers(reader, loaded.load_text, limits)

    def _watch(self, speed: PromptSpeed) -> None:
        """Let everything that observes the engine hear of its steps."""
        self.engine.before_sinks.append(self.metrics.ledger.record)
        if self.accounts.tracing is not None:
            self.engine.before_sinks.append(self.accounts.tracing.note)
        self.engine.on_step += [self.metrics.record, self.history.record, speed.record]
        self.metrics.before_collect += [self._count_adapters, self._count_offload]
        self.alerts.start()
        self._measuring.daemon = True
        self._measuring.start()

    async def _validated(self, call: Call, serve: Serve) -> DeltaStream:
        """Layer: the engine's check of each request. Raises RequestError naming the field."""
        return await serve(replace(call, requests=tuple(self.engine.validate(request) for request in call.requests)))

    def _count_adapters(self) -> None:
        self.metrics.server.adapters_in_memory.value = self.store.num_in_memory
        self.metrics.server.adapters_bytes.value = self.store.num_bytes

    def _count_offload(self) -> None:
        store, series = self.loaded.kv_store, self.metrics.server
        if isinstance(store, HostBlocks):
            for event in HOST_EVENTS:
                series.kv_host_blocks.values[event,] = getattr(store.counts, event)
            series.kv_host_bytes.value = store.num_bytes
            store = store.files
        if store is not None:
            for event, count in asdict(store.counts).items():
                series.kv_offload_blocks.values[event,] = count
            series.kv_offload_bytes.value = store.num_bytes

    def _find_roofline(self) -> None:
        roofline = roofline_of(self.loaded)
        if roofline is not None:
            self.metrics.set_roofline(roofline)
            self.history.roofline = roofline

    def close(self) -> None:
        """End what was started besides the engine."""
        self._measuring.cancel()
        self.alerts.stop()
        self.readers.close()
        self.constraints.close()
        if self.caching is not None:
            self.caching.close()

    def turning(self) -> bool:
        """Whether the engine runs, and takes steps if it has work."""
        busy_since = self.bridge.busy_since
        last_sign = time.monotonic() if busy_since is None else max(busy_since, self.metrics.last_step)
        return self.engine.alive and time.monotonic() - last_sign < STALLED_S

    def describe(self, name: str | None = None) -> dict[str, Any]:
        """The model, or an adapter of it, as /v1/models shows it. ModelNotFoundError: no adapter is called so."""
        if name is None or name == self.name:
            return self._card(self.name, self.name, None)
        version = self.store.known(name)
        if version is None:  # of the folder, and not asked for yet
            return self._card(name, name, self.name) | {"status": {"value": "unloaded"}}
        state = "unloaded" if version.placed is None else "loaded"
        about = {"digest": version.digest, "status": {"value": state}}
        return self._card(name, str(version.path), self.name) | about

    def _card(self, name: str, root: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "pagoda",
            "root": root,
            "parent": parent,
            "max_model_len": self.max_context,
        }


class Service:
    """State of the server. Changed on the event loop only."""

    def __init__(self, settings: ServerSettings, cost: CostSettings | None = None) -> None:
        self.settings = settings
        self._cost = cost or CostSettings()
        self.key_store = None if settings.keys_file is None else KeyStore(settings.keys_file)
        self.phase: Literal["starting", "ready", "draining", "broken"] = "starting"
        self.reason = ""  # why it is broken
        self.long_bodies = asyncio.Semaphore(LONG_BODIES)
        self.num_active = 0  # HTTP requests in the works that a shutdown waits for
        self.responses = ResponseStore()
        self.background: set[asyncio.Task[None]] = set()  # responses that are made without a client that waits
        self._model: Model | None = None

    def attach(self, loaded: Loaded, cache: SemanticCache | None = None) -> Model:
        """The model is there, and the semantic cache if one is wanted: start its engine and answer requests."""
        self._model = Model(loaded, self.settings, self._cost, self.key_store, cache)
        loaded.engine.start()
        if self.phase == "starting":
            self.phase = "ready"
        return self._model

    def close(self) -> None:
        """End what the server has started besides itself."""
        if self._model is not None:
            self._model.close()

    def end(self) -> None:
        """The last answer is over: close the files that are written to."""
        if self._model is not None:
            self._model.accounts.end()
        if self.key_store is not None:
            self.key_store.close()

    def drain(self) -> None:
        """Take no new requests, finish what runs."""
        self.phase = "draining"
        if self._model is not None:
            self._model.engine.drain()

    def give_up(self, reason: str) -> None:
        """Answer nothing more, and end what is being answered: the model's files are not what they were."""
        self.phase, self.reason = "broken", reason
        self.cut_off(reason)

    def cut_off(self, reason: str) -> None:
        """End what is being answered."""
        if self._model is not None:
            self._model.bridge.close_all(EngineError(reason))

    @property
    def ready(self) -> bool:
        return self.phase == "ready" and self._model is not None and self._model.turning()

    @property
    def loaded(self) -> Model | None:
        """The model, if it is there."""
        return self._model

    def model(self, name: str | None = None) -> Model:
        """The model called `name` (None: the one there is), to read from.

        Raises UnavailableError while it loads, ModelNotFoundError when it is called otherwise.
        """
        if self._model is None:
            raise UnavailableError("the model is being loaded", retry_after=STARTING_RETRY_S)
        if name is not None and name != self._model.name and not self._model.store.has(name):
            raise unknown_model(name, self._model.name, self._model.store.names)
        return self._model

    def model_for_work(self) -> Model:
        """The model, to generate with. Raises UnavailableError when shutting down, EngineError when it has stopped."""
        if self.phase == "draining":
            if self._model is not None:
                self._model.metrics.server.http_rejected.add("draining")
            raise UnavailableError("the server is shutting down", retry_after=max(1.0, self.settings.shutdown_timeout))
        model = self.model()
        if self.phase == "broken":
            raise EngineError(self.reason)
        if not model.engine.alive:
            raise EngineError(f"the engine has stopped: {model.engine.error or 'it was shut down'}")
        return model
