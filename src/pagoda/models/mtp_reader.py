"""Reading a head that predicts one token more: its layer as the model's own, and what stands around it (`mtp.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pagoda.errors import UnsupportedError
from pagoda.formats.blocks import BLOCK_TYPES
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.models.family import Family, ModelFile, floats_of
from pagoda.models.layers import Decoder, Linear
from pagoda.models.mtp import MtpHead
from pagoda.models.reader import DecoderReader, LayerKind
from pagoda.models.source import Checkpoint
from pagoda.types import RawTensor

COUNT_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # of config.json
GGUF_COUNT_KEY = "nextn_predict_layers"


@dataclass(frozen=True, slots=True)
class Renamed:
    """A checkpoint whose head has the names that one has in a layer after the last."""

    kind: str
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]


def head_file(checkpoint: Checkpoint, family: Family, decoder: Decoder, max_context: int | None) -> ModelFile | None:
    """The checkpoint as one in which the head of `decoder` is layer `decoder.num_layers`. None: it has none.

    UnsupportedError where its settings speak of one, and no tensors are there.
    """
    layer = decoder.num_layers
    if checkpoint.kind != "gguf" and family.head_names:
        tensors = {renamed(name, family, layer): tensor for name, tensor in checkpoint.tensors.items()}
        checkpoint = Renamed(checkpoint.kind, checkpoint.architecture, checkpoint.metadata, tensors)
    file = ModelFile(checkpoint, family, max_context)
    if file.has_tensor("mtp_projection", layer):
        return file
    if not stated_heads(checkpoint):
        return None
    raise UnsupportedError(
        "the settings speak of a layer that predicts several tokens (MTP), but the files hold none of its tensors"
    )


def stated_heads(checkpoint: Checkpoint) -> int:
    """Layers that predict several tokens, by what the file says literally; 0 where it says nothing sensible."""
    keys = (f"{checkpoint.architecture}.{GGUF_COUNT_KEY}",) if checkpoint.kind == "gguf" else COUNT_KEYS
    inner = checkpoint.metadata.get("text_config")
    for said in (checkpoint.metadata, inner if isinstance(inner, Mapping) else {}):
        for key in keys:
            count = said.get(key)
            if isinstance(count, int) and count > 0:
                return count
    return 0


def renamed(name: str, family: Family, layer: int) -> str:
    """A tensor of the head by the name that one in a layer after the last has; others keep theirs."""
    start = next((start for start in family.head_names if name.startswith(start)), None)
    return name if start is None else f"model.layers.{layer}.{family.head_names[start]}{name.removeprefix(start)}"


def read_head(reader: DecoderReader, kind: LayerKind, decoder: Decoder) -> MtpHead:
    """The head in the layer after the last of `decoder`, whose reader this is. FormatError where a tensor is missing.

    UnsupportedError where it is not built as the families here are.
    """
    file, layer, hidden = reader.file, decoder.num_layers, reader.sizes.hidden_size
    if reader.experts is not None and file.has_tensor("ffn_router", layer):
        reader.experts = replace(reader.experts, layers=reader.experts.layers | {layer})
    block = reader.block(layer, kind)
    if block.attention is None:
        raise UnsupportedError("the layer that predicts several tokens (MTP) has no attention")
    projection = file.tensor("mtp_projection", (hidden, 2 * hidden), layer)
    halves = [Linear(columns_of(projection, start, start + hidden)) for start in (0, hidden)]
    from_token, from_hidden = halves if not file.family.hidden_first else reversed(halves)
    shape = decoder.embedding.shape
    roles = ("mtp_embedding", "mtp_output")
    own = {role: file.tensor(role, shape, layer) for role in roles if file.has_tensor(role, layer)}
    return MtpHead(
        embedding=own.get("mtp_embedding", decoder.embedding),
        token_norm=reader.rms_norm("mtp_token_norm", layer),
        hidden_norm=reader.rms_norm("mtp_hidden_norm", layer),
        from_token=from_token,
        from_hidden=from_hidden,
        block=block,
        norm=reader.norm("mtp_norm", layer) if file.has_tensor("mtp_norm", layer) else decoder.output_norm,
        output=own.get("mtp_output", decoder.output),
        max_context=decoder.max_context,
        embedding_scale=decoder.embedding_scale,
        logit_softcap=decoder.logit_softcap,
        logit_scale=decoder.logit_scale,
    )


def columns_of(raw: RawTensor, start: int, stop: int) -> RawTensor:
    """Columns [start, stop) of a matrix as one of its own: of its type, or floats where blocks do not end there."""
    part = f"[:, {start}:{stop}]"
    elements = 0 if isinstance(raw, QuantizedTensor) else BLOCK_TYPES[raw.type].elements
    if not elements or start % elements or stop % elements:
        return floats_of(raw, as_floats(raw)[:, start:stop], part)
    blocks = raw.rows().reshape(raw.shape[0], raw.shape[1] // elements, -1)
    data = blocks[:, start // elements : stop // elements].reshape(-1)
    name, shape = f"{raw.name}{part}", (raw.shape[0], stop - start)
    return replace(raw, name=name, shape=shape, data=data, part_of=raw.part_of or raw.name)
