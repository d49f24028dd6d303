"""Whether a model's files can be served here and, if not, all that is in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pagoda.backends.packed_weights import check_blocks
from pagoda.errors import PagodaError
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.quant_methods import fold
from pagoda.formats.quantized import FLOAT_TYPES, QuantizedTensor
from pagoda.models.base_names import with_base_names
from pagoda.models.bert import is_encoder, load_encoder
from pagoda.models.layers import Block
from pagoda.models.planned import PLANNED
from pagoda.models.registry import find_family, load_model
from pagoda.text.tokenizer import load_tokenizer


def obstacles(checkpoint: Checkpoint) -> list[str]:
    """A sentence each, none where the model is served. Reads no weights. `checkpoint` is opened with `any_type`."""
    found = [*_quantization(checkpoint), *_types(checkpoint), *_model(checkpoint)]
    return found + _said(lambda: load_tokenizer(checkpoint))


def _said(attempt: Callable[[], object]) -> list[str]:
    try:
        attempt()
    except PagodaError as error:
        return [str(error)]
    return []


def _quantization(checkpoint: Checkpoint) -> list[str]:
    """A folder's method of quantizing that is not read. What is read was folded when the checkpoint was opened."""
    stated = checkpoint.metadata.get("quantization_config") if checkpoint.kind == "safetensors" else None
    return _said(lambda: fold(checkpoint.tensors, stated)) if isinstance(stated, Mapping) else []


def _types(checkpoint: Checkpoint) -> Iterator[str]:
    """Types that nothing here decodes."""
    known = {*BLOCK_TYPES, *FLOAT_TYPES}
    tensors = [tensor for tensor in checkpoint.tensors.values() if not isinstance(tensor, QuantizedTensor)]
    for unknown in sorted({tensor.type for tensor in tensors} - known):
        names = [tensor.name for tensor in tensors if tensor.type == unknown]
        yield f"{len(names)} tensors of type {unknown}, such as {names[0]!r}, which is not supported"


def _model(checkpoint: Checkpoint) -> list[str]:
    if is_encoder(checkpoint):
        return _said(lambda: load_encoder(checkpoint))
    named = with_base_names(checkpoint)
    if find_family(named) is None:
        planned = find_family(named, PLANNED)
        known = "" if planned is None else "; `pagoda plan` knows its shape"
        return [f"architecture {checkpoint.architecture!r} is not supported{known}"]
    return _said(lambda: _check(load_model(named).blocks))


def _check(blocks: Iterable[Block]) -> None:
    for block in blocks:
        for matrix in block.matrices:
            if not isinstance(matrix, QuantizedTensor):
                check_blocks(matrix)
