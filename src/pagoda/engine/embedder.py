"""Texts to vectors with an encoder, whole texts side by side in one step, without padding.

A text's vector depends on nothing but the text, bit for bit: each of its tokens sees the tokens of the text alone, and
no sum depends on what else the step computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pagoda import _native
from pagoda.backends.base import Backend, LoadedModel
from pagoda.backends.packed_weights import FLOAT_TYPES
from pagoda.config import EncoderWeights, EngineSettings
from pagoda.engine.device import make_backend
from pagoda.engine.shared_steps import SharedSteps
from pagoda.errors import FormatError, GenerationError, RequestError
from pagoda.formats.blocks import BLOCK_TYPES, dequantize
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.models.bert import load_encoder, read_head
from pagoda.models.encoder import Encoder
from pagoda.models.pooling import Pooling, read_pooling
from pagoda.sources import Progress, resolve
from pagoda.text.framing import TokenizedText, VectorTraits, encoder_pair, fitted
from pagoda.text.tokenizer import Tokenizer, load_tokenizer
from pagoda.types import BLOCK_SIZE, Batch, FloatArray, Int32Array, RawTensor

DEFAULT_EMBEDDER = "all-minilm-l6-v2"
STEP_TOKENS = 1024
STEP_TEXTS = 256
NO_ROWS: Int32Array = np.empty(0, np.int32)


class Embedder:
    """An encoder that is ready to embed. Any number of threads may use it; they share steps.

    name: of the model. dimensions: of its vectors. digest: of all that decides them, the content of the model's files
    included. max_tokens: what it reads of a text, special tokens included.
    """

    def __init__(
        self, name: str, encoder: Encoder, model: LoadedModel, tokenizer: Tokenizer, pooling: Pooling, digest: str
    ) -> None:
        self.name = name
        self.dimensions = encoder.hidden_size if pooling.head is None else pooling.head.size
        self.digest = digest
        self.max_tokens = min(pooling.max_tokens or encoder.max_context, encoder.max_context)
        self.vocab_size, self.num_token_types = encoder.vocab_size, encoder.num_token_types
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.traits = VectorTraits(
            "embedding" if pooling.head is None else "cross_encoder",
            self.max_tokens,
            self.dimensions,
            pooling.normalize,
            types=self.num_token_types > 1,
            prompt=pooling.prompt,
            lowercase=pooling.lowercase,
            is_encoder=True,
        )
        self._model = model
        self._steps = SharedSteps(self._compute, max_tokens=STEP_TOKENS, max_texts=STEP_TEXTS)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """The vectors of the texts, each of length 1 and of what `max_tokens` leaves of its text. → [N, dimensions]

        A text without any words has a vector, too: that of its special tokens. GenerationError if the model makes
        numbers that are not finite.
        """
        return self.embed_tokens([self.tokenize(text) for text in texts])

    def tokenize(self, text: str) -> TokenizedText:
        """The text's tokens, the last ones left out where there are more than `max_tokens`."""
        ids = self.tokenizer.encode(self.traits.prepared(text))
        return fitted(ids, self.tokenizer.vocabulary.suffix, self.max_tokens)

    def tokenize_pair(self, first: str, second: str) -> TokenizedText:
        """Both texts as one input, as cross-encoders read them; the longer one is cut where they do not fit."""
        ids = [self.tokenizer.encode(text, add_special=False) for text in (first, second)]
        frame = (self.tokenizer.vocabulary.prefix, self.tokenizer.vocabulary.suffix)
        return encoder_pair(ids[0], ids[1], frame, types=self.traits.types, limit=self.max_tokens)

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> FloatArray:
        """As `embed`, of texts that are tokens already. RequestError for one without any, with too many or unknown."""
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for text in texts:
            self.check(text)
        for first, last in _steps([len(text.token_ids) for text in texts]):
            vectors[first:last] = self._steps.run(texts[first:last])
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise GenerationError(f"{self.name} computes numbers for text {bad[0]} that are not finite")
        return vectors

    def check(self, text: TokenizedText) -> None:
        """RequestError for a text that the model cannot read."""
        if not 0 < len(text.token_ids) <= self.max_tokens:
            raise RequestError(
                f"a text has {len(text.token_ids)} tokens; {self.name} reads 1 to {self.max_tokens}", param="input"
            )
        if not (min(text.token_ids) >= 0 and max(text.token_ids) < self.vocab_size):
            raise RequestError(f"token ids must be from 0 to {self.vocab_size - 1}", param="input")
        if text.token_types and len(text.token_types) != len(text.token_ids):
            raise RequestError("a type for each token is needed, or none", param="input")

    def _compute(self, texts: Sequence[TokenizedText]) -> list[FloatArray]:
        """The vectors of texts that fit in one step."""
        batch = whole_texts([text.token_ids for text in texts], [text.token_types for text in texts])
        self._model.stage(batch)
        self._model.launch(batch.tokens)
        return list(self.pooling.of_texts(self._model.hidden_states(), batch.seq_starts))

    def close(self) -> None:
        """Free everything. Idempotent."""
        with self._steps.turn:
            self._model.close()


def _steps(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of texts that fit in one step each, as (first, behind the last)."""
    first, tokens = 0, 0
    for i, length in enumerate(lengths):
        if i > first and (tokens + length > STEP_TOKENS or i - first == STEP_TEXTS):
            yield first, i
            first, tokens = i, 0
        tokens += length
    if lengths:
        yield first, len(lengths)


def whole_texts(texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]] = ()) -> Batch:
    """A step that computes all of each text and wants all hidden states, its KV in blocks from 0 on."""
    lengths = np.array([len(text) for text in texts], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    num_tokens = int(starts[-1])
    blocks = (lengths + BLOCK_SIZE - 1) // BLOCK_SIZE
    first_blocks = np.cumsum(blocks) - blocks
    table = np.full((len(texts), int(blocks.max())), -1, np.int32)
    column = np.arange(table.shape[1])
    owned = column[None, :] < blocks[:, None]
    table[owned] = (first_blocks[:, None] + column[None, :])[owned]
    token_types = NO_ROWS
    if any(types):
        padded = (kinds or (0,) * len(text) for kinds, text in zip(types, texts, strict=True))
        token_types = np.fromiter((kind for kinds in padded for kind in kinds), np.int32, num_tokens)
    return Batch(
        tokens=np.fromiter((token for text in texts for token in text), np.int32, num_tokens),
        positions=(np.arange(num_tokens) - np.repeat(starts[:-1], lengths)).astype(np.int32),
        seq_starts=starts,
        context_lens=lengths,
        block_tables=(table,),
        logit_rows=NO_ROWS,
        hidden_rows=np.arange(num_tokens, dtype=np.int32),
        token_types=token_types,
    )


def load_embedder(
    name: str = DEFAULT_EMBEDDER,
    *,
    threads: int = 0,
    weights: EncoderWeights = "file",
    settings: EngineSettings | None = None,
    backend: Backend | None = None,
    progress: Progress | None = None,
) -> Embedder:
    """The embedder of this name (see `pagoda.sources.names`), downloaded if it is not there.

    threads: compute threads, 0: one per physical core allowed. weights: as they are in the file, or rounded to Q8_0,
    which is half as fast again. Or `settings` in their place. backend: one that is there already. Raises SourceError,
    FormatError, UnsupportedError or CapacityError, each with the remedy.
    """
    if settings is None:
        settings = EngineSettings(model=name, backend="cpu", threads=threads, encoder_weights=weights)
    backend = backend or encoder_backend(settings)
    source = resolve(name, progress=progress)
    checkpoint = open_checkpoint(source.path)
    checkpoint.guard()
    try:
        return open_embedder(backend, checkpoint, source.name, settings.encoder_weights)
    finally:
        checkpoint.close()


def encoder_backend(settings: EngineSettings) -> Backend:
    """Where an encoder is computed: on the CPU, unless the settings say otherwise."""
    if settings.backend == "auto":
        settings = replace(settings, backend="cpu")
    return make_backend(settings)


def open_embedder(backend: Backend, checkpoint: Checkpoint, name: str, weights: EncoderWeights = "file") -> Embedder:
    """The embedder in `checkpoint`, which may be closed afterwards where the backend copies weights."""
    encoder = load_encoder(checkpoint)
    if weights == "q8_0":
        encoder = encoder.with_matrices(to_q8_0)
    tokenizer = load_tokenizer(checkpoint)
    pooling = read_pooling(checkpoint, "mean")
    head = read_head(checkpoint, encoder)
    if head is not None:
        pooling = replace(pooling, kind="cls", normalize=False, head=head)
    return Embedder(name, encoder, place(backend, encoder), tokenizer, pooling, _digest(checkpoint, pooling, weights))


def to_q8_0(matrix: RawTensor) -> RawTensor:
    """The matrix in 8 bits a weight; as it is where its rows are no whole blocks, or it is quantized already."""
    rows, columns = matrix.shape
    block = BLOCK_TYPES["Q8_0"]
    if matrix.type not in FLOAT_TYPES or columns % block.elements:
        return matrix
    out = np.empty((rows, columns // block.elements * block.bytes), np.uint8)
    bad = _native.quantize(dequantize(matrix.data, matrix.type, matrix.shape), "Q8_0", out)
    if bad >= 0:
        raise FormatError(f"tensor {matrix.name!r} holds a number that is not finite, or too large for Q8_0")
    return replace(matrix, name=f"{matrix.name} (Q8_0)", type="Q8_0", data=out.reshape(-1))


def place(backend: Backend, encoder: Encoder) -> LoadedModel:
    """The encoder with its weights, and room for the largest step, in place."""
    step_tokens = max(STEP_TOKENS, encoder.max_context)
    model = backend.load(encoder, max_batch_tokens=step_tokens, max_batch_seqs=STEP_TEXTS, kv_type="f32")
    try:
        model.allocate_kv((step_tokens // BLOCK_SIZE + STEP_TEXTS,))
    except BaseException:
        model.close()
        raise
    return model


def _digest(checkpoint: Checkpoint, pooling: Pooling, weights: EncoderWeights) -> str:
    """SHA-256, in hexadecimal digits, of the weights, the settings and the tokenizer."""
    digest = hashlib.sha256()
    for part in _parts(checkpoint):
        digest.update(part)
    digest.update(repr((replace(pooling, head=None), weights)).encode())
    return digest.hexdigest()


def _parts(checkpoint: Checkpoint) -> Iterable[bytes | memoryview]:
    for key in sorted(checkpoint.metadata):
        yield repr((key, checkpoint.metadata[key])).encode("utf-8", "surrogateescape")
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        yield repr((name, tensor.type, tensor.shape)).encode()
        yield np.ascontiguousarray(tensor.data).data
    if checkpoint.kind != "gguf":
        yield (checkpoint.path / "tokenizer.json").read_bytes()
