"""The families that Pagoda serves, a row each, and how a file's is found. A clone is a row, never a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pagoda.errors import UnsupportedError
from pagoda.models import (
    cohere,
    deepseek,
    falcon_h1,
    gemma2,
    gemma3,
    gemma3n_reader,
    gemma4_reader,
    glm4,
    glm4_moe,
    gpt_oss,
    granite,
    granite_hybrid,
    hunyuan,
    lfm2,
    llama,
    mimo,
    ministral3,
    mistral,
    mistral4,
    mixtral,
    nemotron,
    nemotron_h,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    qwen35,
    qwen_vl,
    seed_oss,
    smollm3,
    stablelm,
)
from pagoda.models.bert import is_encoder
from pagoda.models.family import NESTED, Family, ModelFile
from pagoda.models.layers import Decoder
from pagoda.models.mtp import MtpHead
from pagoda.models.mtp_reader import head_file
from pagoda.models.planned import PLANNED
from pagoda.models.source import Checkpoint

FAMILIES: tuple[Family, ...] = (
    mixtral.FAMILY,  # families of GGUF's llama: the first that a file states
    mistral.FAMILY,
    llama.FAMILY,
    qwen2.FAMILY,
    mimo.FAMILY,
    qwen3.FAMILY,
    qwen2_moe.FAMILY,
    qwen3_moe.FAMILY,
    qwen_vl.SECOND,
    qwen_vl.SECOND_AND_A_HALF,
    qwen_vl.THIRD,
    qwen_vl.MIXTURE,
    qwen35.DENSE,
    qwen35.MIXTURE,
    qwen35.NEXT,
    gemma2.FIRST,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3n_reader.FAMILY,
    gemma4_reader.FAMILY,
    phi3.FAMILY,
    ministral3.FAMILY,
    mistral4.FAMILY,
    deepseek.SECOND,  # before the others, whose architecture its files state
    deepseek.THIRD,
    deepseek.GLM_LITE,
    olmo3.FAMILY,  # before OLMo 2, whose architecture its files state
    olmo2.FAMILY,
    smollm3.FAMILY,
    granite.FAMILY,
    granite_hybrid.BAMBA,  # before Granite 4, whose architecture its files state
    granite_hybrid.FAMILY,
    granite_hybrid.SHARED,
    granite_hybrid.MIXTURE,
    falcon_h1.FAMILY,
    glm4.FAMILY,
    glm4_moe.FAMILY,
    seed_oss.FAMILY,
    hunyuan.FAMILY,
    cohere.FAMILY,
    cohere.SECOND,
    stablelm.FAMILY,
    nemotron.FAMILY,
    nemotron_h.FAMILY,
    gpt_oss.FAMILY,
    lfm2.FAMILY,
    lfm2.MIXTURE,
)

ENCODER_USES = "`pagoda serve` and `load_embedder` take it"


def load_model(checkpoint: Checkpoint, max_context: int | None = None) -> Decoder:
    """The checkpoint's model, its tensors still as they lie in the file.

    max_context: tokens that will be served, where it is fewer than the model can; it picks longrope's factors.

    Raises UnsupportedError for an architecture that is not in the table or a tensor that the family does not use;
    FormatError for settings that cannot be, and for tensors that are missing or of the wrong shape.
    """
    family = family_of(checkpoint)
    assert family.build is not None
    return family.build(ModelFile(checkpoint, family, max_context))


def load_head(checkpoint: Checkpoint, decoder: Decoder, max_context: int | None = None) -> MtpHead | None:
    """The head that predicts one token more, of a checkpoint whose model is `decoder`; None: it has none.

    UnsupportedError or FormatError says what is wrong with it; the model itself is served all the same.
    """
    family = family_of(checkpoint)
    if family.head is None:
        return None
    file = head_file(checkpoint, family, decoder, max_context)
    return None if file is None else family.head(file, decoder)


def family_of(checkpoint: Checkpoint) -> Family:
    """UnsupportedError if the table has none."""
    found = find_family(checkpoint)
    if found is None:
        if is_encoder(checkpoint):
            raise UnsupportedError(
                f"{checkpoint.architecture} is an encoder: it makes embeddings, and writes no text; {ENCODER_USES}"
            )
        known = ", ".join(sorted({family.gguf if checkpoint.kind == "gguf" else family.name for family in FAMILIES}))
        raise UnsupportedError(f"architecture {checkpoint.architecture!r} is not supported; supported: {known}")
    return found


def find_family(checkpoint: Checkpoint, families: Sequence[Family] = FAMILIES) -> Family | None:
    """By config.json's model_type, that of the language part where there are others; or by GGUF's architecture and, of
    those that share it, by the key that tells."""
    if checkpoint.kind != "gguf":
        text = checkpoint.metadata.get(NESTED)
        stated = text.get("model_type") if isinstance(text, Mapping) else None
        name = stated.removesuffix("_text") if isinstance(stated, str) else checkpoint.architecture
        return next((family for family in families if family.name == name), None)
    sharing = (family for family in families if family.gguf == checkpoint.architecture)
    return next((family for family in sharing if family.is_stated(checkpoint.metadata)), None)


def known_family(architecture: str) -> Family | None:
    """The family, served or planned for, that config.json or GGUF call so."""
    known = (*FAMILIES, *PLANNED)
    by_name = next((family for family in known if family.name == architecture), None)
    return by_name or next((family for family in known if family.gguf == architecture), None)


def fallback_template(checkpoint: Checkpoint) -> str | None:
    """The chat template of the checkpoint's family, for models that bring none; None where it has none."""
    family = find_family(checkpoint)
    return None if family is None else family.chat_template
