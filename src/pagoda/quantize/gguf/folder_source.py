"""A Hugging Face folder as a GGUF file would hold it: its names, its order of rows, its stacks of experts.

GGUF has the rows of Llama's q and k reordered so that a rotary pair lies side by side, and Gemma's norms with the 1
that is added to them: `models/family.py` says of which families. What config.json says that GGUF has no key for is
refused (`model_values.py`).
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from pagoda.errors import UnsupportedError
from pagoda.formats.checkpoint import Checkpoint
from pagoda.formats.quantized import QuantizedTensor, as_floats
from pagoda.models.family import NESTED, Family
from pagoda.models.names import HUGGING_FACE, Named, translate
from pagoda.models.registry import family_of, load_model
from pagoda.quantize.gguf.model_values import model_values, rope_tensors
from pagoda.quantize.gguf.repack import block_type, blocks_of
from pagoda.quantize.gguf.source_model import SourceTensor, decode_rows
from pagoda.quantize.gguf.tokenizer_values import tokenizer_values
from pagoda.types import FloatArray, RawTensor

STACK = ".experts.gate_up_proj"
STACK_REMEDY = "save the model with transformers in its original format, an expert a tensor"


class FolderSource:
    """`SourceModel` of a Hugging Face folder. UnsupportedError for a family or settings that GGUF cannot say."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        decoder = load_model(checkpoint)  # checks every shape, and that nothing is left over
        self.checkpoint = checkpoint
        self._family = family_of(checkpoint)
        self._family.check_converted()
        if checkpoint.metadata.get(NESTED) is not None:
            raise UnsupportedError("a folder that holds a model of images, too, is left to llama.cpp's converter")
        self._threads = threads
        self._decoded: RawTensor | None = None
        if decoder.is_hybrid:
            raise UnsupportedError("models with recurrent layers are not converted: take llama.cpp's converter")
        spec = decoder.attention.spec
        self._heads = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads} if self._family.interleaved else {}
        found = _gguf_names(checkpoint, self._family, tied=decoder.output.name == decoder.embedding.name)
        self._roles = {name: tensors[0].role for name, tensors in found.items()}
        self.names = {name: tuple(tensor.name for tensor in tensors) for name, tensors in found.items()}
        self._made = rope_tensors(checkpoint.metadata, decoder, self._family)
        self.sources = {name: self._source(name) for name in self.names}
        self.sources |= {name: SourceTensor(values.shape, "F32") for name, values in self._made.items()}
        self.values = {
            **model_values(checkpoint, decoder, self._family),
            **tokenizer_values(checkpoint.path, checkpoint.metadata, decoder.vocab_size),
        }

    def _raws(self, name: str) -> list[RawTensor]:
        """The folder's tensor, or one an expert."""
        return [self.checkpoint.tensors[theirs] for theirs in self.names[name]]

    def _source(self, name: str) -> SourceTensor:
        raws, role = self._raws(name), self._roles[name]
        shape = raws[0].shape if not role.endswith("_exps") else (len(raws), *raws[0].shape)
        return SourceTensor(shape, "F32" if role == "ffn_router" else _type_of(raws[0]))

    def raw(self, name: str) -> npt.NDArray[np.uint8] | None:
        if name in self._made:
            return None
        raws, order = self._raws(name), self._order(name)
        if isinstance(raws[0], QuantizedTensor):
            blocks = _stacked_blocks(raws)
            return blocks if blocks is None or order is None else blocks[order]
        return raws[0].data if len(raws) == 1 and len(raws[0].shape) > 1 and order is None else None

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        if name in self._made:
            return self._made[name].reshape(1, -1)[start:stop]
        raws, order = self._raws(name), self._order(name)
        if len(raws) > 1:
            x = self._stacked_rows(raws, start, stop)
        elif order is None:
            x = decode_rows(self._plain(raws[0]), start, stop, self._threads)
        elif len(raws[0].shape) == 1:
            x = decode_rows(raws[0], 0, 1, 1)[:, order]
        else:
            x = decode_rows(self._plain(raws[0]), 0, raws[0].shape[0], self._threads)[order[start:stop]]
        if self._family.norm_offset and self._roles[name].endswith("norm") and name.endswith(".weight"):
            x = x + np.float32(self._family.norm_offset)
        return np.ascontiguousarray(x)

    def _stacked_rows(self, raws: list[RawTensor], start: int, stop: int) -> FloatArray:
        """Rows [start, stop) of matrices of one shape, one below the other."""
        each, pieces = raws[0].shape[0], []
        for i in range(start // each, -(-stop // each)):
            first, last = max(start - i * each, 0), min(stop - i * each, each)
            pieces.append(decode_rows(self._plain(raws[i]), first, last, self._threads))
        return np.concatenate(pieces)

    def _plain(self, raw: RawTensor) -> RawTensor:
        """`raw`, or float32 instead of a layer that the folder has quantized; the last one is kept."""
        if not isinstance(raw, QuantizedTensor):
            return raw
        if self._decoded is None or self._decoded.name != raw.name:
            values = np.ascontiguousarray(as_floats(raw), dtype=np.float32)
            self._decoded = RawTensor(raw.name, "F32", raw.shape, values.view(np.uint8).reshape(-1))
        return self._decoded

    def release(self, name: str) -> None:
        for theirs in self.names.get(name, ()):
            self.checkpoint.release(theirs)

    def _order(self, name: str) -> npt.NDArray[np.int64] | None:
        """Which of the folder's rows each row of the new file is; None where they are the same."""
        heads = self._heads.get(self._roles[name])
        if heads is None:
            return None
        rows = self._raws(name)[0].shape[0]
        return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _stacked_blocks(raws: list[RawTensor]) -> npt.NDArray[np.uint8] | None:
    """Quantized layers, one below the other, in blocks of one type; None where that cannot take over their codes."""
    weights = [raw.unpack() for raw in raws if isinstance(raw, QuantizedTensor)]
    if len(weights) < len(raws) or len({block_type(weight) for weight in weights}) > 1:
        return None
    blocks = [block for weight in weights if (block := blocks_of(weight)) is not None]
    return np.concatenate(blocks) if blocks else None


def _type_of(raw: RawTensor) -> str:
    """Vectors are float32 in GGUF files; what a folder holds in a way of its own gets the nearest block type."""
    if isinstance(raw, QuantizedTensor):
        return block_type(raw.unpack())[0]
    return "F32" if len(raw.shape) == 1 else raw.type


def _gguf_names(checkpoint: Checkpoint, family: Family, *, tied: bool) -> dict[str, list[Named]]:
    """GGUF name → the folder's tensor or, of a stack, those of its experts; embedding first and then layer by layer.

    UnsupportedError where q and k, whose rows are to be reordered, are in one matrix.
    """
    stack = next((name for name in checkpoint.tensors if name.endswith(STACK)), None)
    if stack is not None:
        raise UnsupportedError(f"{stack!r} holds all experts in one: {STACK_REMEDY}")
    found: dict[str, list[Named]] = {}
    for tensor in translate(checkpoint.tensors, family.tensors, HUGGING_FACE):
        if tensor.role == "attn_qkv" and family.interleaved:
            raise UnsupportedError(f"{tensor.name!r} holds q, k and v in one, which GGUF files of {family.name} do not")
        if not (tied and tensor.role == "output"):
            found.setdefault(tensor.other, []).append(tensor)
    stacks = {name: sorted(tensors, key=lambda tensor: tensor.expert or 0) for name, tensors in found.items()}
    return dict(sorted(stacks.items(), key=_place))


def _place(item: tuple[str, list[Named]]) -> tuple[int, str]:
    layer = re.match(r"blk\.(\d+)\.", item[0])
    return int(layer[1]) if layer else -1, item[0]
