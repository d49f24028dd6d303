"""From a request to its sequences: what its parameters mean for this model and tokenizer, worked out once."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from hashlib import blake2b
from typing import Protocol

from pagoda.engine.output import OutputText, TokenStream
from pagoda.engine.sequence import Sequence
from pagoda.kv.prefix import PROCESS_SECRET
from pagoda.models.pooling import PoolingKind
from pagoda.sampling.bad_words import token_sequences
from pagoda.sampling.base import SamplerProtocol, StateSpec
from pagoda.sampling.dry import Breakers
from pagoda.types import Request


class EngineTokenizer(Protocol):
    """What the engine asks of a tokenizer, see `pagoda.text`."""

    @property
    def eos_ids(self) -> Collection[int]: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def stream(
        self, *, skip_special: bool = True, prompt_ids: Seq[int] = (), shown_ids: Collection[int] = ()
    ) -> TokenStream: ...

    @property
    def vocab_size(self) -> int: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class SequenceOpener:
    """Opens the choices of requests. `seed` goes into the random numbers of requests without a seed of their own."""

    def __init__(
        self,
        tokenizer: EngineTokenizer,
        sampler: SamplerProtocol,
        pooling: PoolingKind,
        *,
        max_context: int,
        seed: int,
        prefix_secret: bytes = PROCESS_SECRET,
    ) -> None:
        self._prefix_secret = prefix_secret
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._max_context = max_context
        self._seed = seed
        self._pools_all = pooling != "last"  # of pooled requests all hidden states are wanted
        self._breakers = Breakers(tokenizer)

    def open(self, request: Request, order: int) -> list[Sequence]:
        """One sequence for each choice of the validated request, the `order`th; the first has the others as children.

        The first computes the prompt for all of them.
        """
        bad_words = token_sequences(request.params.bad_words, self._encode)  # once, however many choices there are
        first, *others = [self._open(request, index, order, bad_words) for index in range(request.params.n)]
        first.children = others
        return [first, *others]

    def _open(self, request: Request, index: int, order: int, bad_words: tuple[tuple[int, ...], ...]) -> Sequence:
        params = request.params
        eos_ids = frozenset() if params.ignore_eos else frozenset(self._tokenizer.eos_ids)
        stop_ids = eos_ids.union(params.stop_token_ids)
        spec = StateSpec(
            params,
            request.prompt_token_ids,
            index,
            seed=self._seed_of(request) if params.seed is None else params.seed,
            stop_token_ids=sorted(stop_ids),
            bad_words=bad_words,
            dry_breakers=self._breakers.sequences(params.dry_sequence_breakers) if params.dry_multiplier else (),
        )
        stream = self._tokenizer.stream(
            skip_special=params.skip_special_tokens,
            prompt_ids=request.prompt_token_ids,
            shown_ids=request.shown_token_ids,
        )
        room = self._max_context if params.max_tokens is None else len(request.prompt_token_ids) + params.max_tokens
        return Sequence(
            request,
            index,
            order=order,
            max_len=min(room, self._max_context),
            stop_ids=stop_ids,
            sampler=self._sampler.open(spec),
            output=OutputText(stream, params),
            pools_all=request.pooled and self._pools_all,
            constraint=None if request.constraint is None else request.constraint.start(),
            prefix_secret=self._prefix_secret,
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False)

    def _seed_of(self, request: Request) -> int:
        digest = blake2b(f"{self._seed} {request.id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1
