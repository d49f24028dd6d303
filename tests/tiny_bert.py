"""Tiny random encoders, as a Hugging Face folder with the files of sentence-transformers.

Weights come from the tensors' names by integer arithmetic, as those of `tiny_models`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from tiny_blocks import FloatArray, encode, noise

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "dog", "sat", "on", "mat", "is", "not", "an", "##ing", "##ed"]
LETTERS = [*string.ascii_lowercase, *string.digits, *".,?!'-"]
TOKENS = [*SPECIALS, *WORDS, *LETTERS, *(f"##{letter}" for letter in string.ascii_lowercase + string.digits)]
VOCAB, PAD, CLS, SEP = len(TOKENS), 0, 2, 3

BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 80,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": PAD,
    "type_vocab_size": 2,
    "vocab_size": VOCAB,
}
ROBERTA = {**BERT, "model_type": "roberta", "architectures": ["RobertaModel"], "type_vocab_size": 1, "pad_token_id": 1}
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of a bare encoder, by Hugging Face names."""
    e, f = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], e),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], e),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], e),
    }
    norms, linears = ["embeddings.LayerNorm"], {}
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        linears |= {f"{layer}.attention.self.{part}": (e, e) for part in ("query", "key", "value")}
        linears |= {f"{layer}.attention.output.dense": (e, e)}
        linears |= {f"{layer}.intermediate.dense": (f, e), f"{layer}.output.dense": (e, f)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (e,), f"{name}.bias": (e,)}
    return shapes


def weights(config: Mapping[str, Any], prefix: str = "") -> dict[str, FloatArray]:
    return {prefix + name: _weight(name, shape) for name, shape in tensor_shapes(config).items()}


def _weight(name: str, shape: tuple[int, ...]) -> FloatArray:
    if name.endswith("LayerNorm.weight"):
        return noise(name, shape, 0.2) + 1
    if name.endswith("bias"):
        return noise(name, shape, 0.3)
    return noise(name, shape, 1.0 if "embeddings" in name else 1.5 * shape[1] ** -0.5)


def tokenizer_json() -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {name: {"id": name, "ids": [TOKENS.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in special)
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    end = {"SpecialToken": {"id": "[SEP]", "type_id": 1}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, "special": True} | flags for i, name in enumerate(SPECIALS)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, end],
            "special_tokens": special,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(TOKENS)},
        },
    }


def write_tensors(path: Path, tensors: Mapping[str, FloatArray], type: str = "F32") -> None:
    header, blobs, offset = {}, [], 0
    for name, values in tensors.items():
        blob = encode(values, type).tobytes()
        header[name] = {"dtype": type, "shape": list(values.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


GGUF_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    layer = ""
    if stem.startswith("encoder.layer."):
        number, stem = stem.removeprefix("encoder.layer.").split(".", 1)
        layer = f"blk.{number}."
    return f"{layer}{GGUF_NAMES[stem]}.{suffix}"


def gguf_token(token: str) -> str:
    """As llama.cpp's converter writes WordPiece: the beginnings of words are marked, not what goes on."""
    if token.startswith("##"):
        return token[2:]
    return token if token in SPECIALS else "\u2581" + token


def write_encoder_gguf(path: Path, *, type: str = "F32", pooling: int | None = 1) -> Path:
    """The model of BERT as a GGUF file, its matrices of `type`."""
    writer = gguf.GGUFWriter(path, "bert")
    for key, value in {
        "block_count": BERT["num_hidden_layers"],
        "context_length": BERT["max_position_embeddings"],
        "embedding_length": BERT["hidden_size"],
        "feed_forward_length": BERT["intermediate_size"],
        "attention.head_count": BERT["num_attention_heads"],
    }.items():
        writer.add_uint32(f"bert.{key}", value)
    writer.add_float32("bert.attention.layer_norm_epsilon", BERT["layer_norm_eps"])
    writer.add_bool("bert.attention.causal", False)
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([gguf_token(token) for token in TOKENS])
    writer.add_token_types([3 if token in SPECIALS else 1 for token in TOKENS])
    for name, token in (("cls", CLS), ("seperator", SEP), ("unknown", 1), ("padding", PAD)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    for name, values in weights(BERT).items():
        chosen = type if name.endswith("weight") and values.ndim > 1 and "embeddings" not in name else "F32"
        writer.add_tensor(gguf_name(name), encode(values, chosen), raw_dtype=gguf.GGMLQuantizationType[chosen])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_encoder(
    folder: Path,
    config: Mapping[str, Any] = BERT,
    *,
    tensors: Mapping[str, FloatArray] | None = None,
    type: str = "F32",
    pooling: Mapping[str, Any] | None = MEAN,
    normalize: bool = True,
    max_tokens: int | None = None,
) -> Path:
    """A model folder. `pooling` None: without the files of sentence-transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    write_tensors(folder / "model.safetensors", weights(config) if tensors is None else tensors, type)
    if pooling is None:
        return folder
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
    if max_tokens:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    return folder
