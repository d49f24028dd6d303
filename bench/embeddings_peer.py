"""A peer of `embeddings.py`, in the peers' Python: KIND FOLDER THREADS, then a request a line on standard input."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def sentence_transformers(folder: str, threads: int) -> tuple[str, Any]:
    import sentence_transformers
    import torch

    torch.set_num_threads(threads)
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")

    def embed(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=32, show_progress_bar=False)

    return f"{sentence_transformers.__version__}, torch {torch.__version__}", embed


def onnxruntime(folder: str, threads: int) -> tuple[str, Any]:
    import numpy as np
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(exported(folder)), options, ["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def embed(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out = np.empty((len(texts), 384), np.float32)
        for first in range(0, len(order), 32):
            places = order[first : first + 32]
            batch = tokenizer.encode_batch([texts[i] for i in places])
            ids = np.array([one.ids for one in batch], np.int64)
            mask = np.array([one.attention_mask for one in batch], np.int64)
            (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            out[places] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return out

    return ort.__version__, embed


def exported(folder: str) -> Path:
    """The encoder as ONNX, made by torch once and then kept in the temporary folder."""
    path = Path(tempfile.gettempdir()) / "pagoda-bench-minilm.onnx"
    if path.exists():
        return path
    import torch
    from transformers import AutoModel

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(0, 1000, (3, 17))
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "texts", 1: "tokens"} for name in [*names, "hidden"]}
    torch.onnx.export(
        Hidden(),
        (ids, torch.ones_like(ids)),
        str(path),
        input_names=names,
        output_names=["hidden"],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=17,
    )
    return path


def main() -> None:
    kind, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    version, embed = {"sentence-transformers": sentence_transformers, "onnxruntime": onnxruntime}[kind](folder, threads)
    print(json.dumps({"version": version}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        vectors = embed(request["texts"])
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "vectors": vectors.tolist() if request["vectors"] else None}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
