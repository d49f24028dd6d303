"""llm-compressor's GPTQ or AWQ of a model on given tokens, with its own defaults; run by its own Python.

python bench/peer_llmcompressor.py gptq|awq MODEL TOKENS.npy OUT GROUP_SIZE

AWQ's search runs the attention and the MLP of a layer twenty times each over the whole sample: hours on a CPU. So it
uses torch's fused attention instead of the eager one, takes the error of a lone linear from the inputs' Gram matrix,
leaves a candidate once its error exceeds the best one's, and keeps the scales that it finds beside OUT, so that a
second start goes on where the first stopped (its cost is then of that start alone). None of these changes what is
found, but for the order of sums. The file's name says what was searched: sample and group size.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def quick_awq(kept: Path) -> Any:
    """llm-compressor's AWQ modifier, with a quicker search that keeps the scales it finds in the file `kept`."""
    import torch
    from llmcompressor.modifiers.transform.awq import AWQModifier

    class QuickAWQ(AWQModifier):  # type: ignore[misc]
        _least: float | None = None  # the smallest error of the search under way, None outside of one
        _gram: Any = None  # of the inputs, where the search is about one linear
        _original: Any = None  # the weights of that linear

        def _compute_best_scale(self, mapping: Any, outputs: Any, weights: Any) -> Any:
            scales = torch.load(kept) if kept.exists() else {}
            if mapping.smooth_name not in scales:
                self._least = float("inf")
                if isinstance(mapping.parent, torch.nn.Linear):
                    batches = self._parent_args_cache[mapping.parent]
                    inputs = (batch["input"].flatten(0, -2) for batch in batches)
                    self._gram = sum(x.T @ x for x in inputs)
                    self._original = weights[mapping.parent]
                scales[mapping.smooth_name] = super()._compute_best_scale(mapping, outputs, weights)
                self._least = self._gram = self._original = None
                partial = kept.with_name(kept.name + ".partial")
                torch.save(scales, partial)
                partial.replace(kept)
            return scales[mapping.smooth_name]

        def _run_samples(self, module: Any) -> Any:
            if self._gram is not None:
                return module
            outputs = self._outputs(module)
            return list(outputs) if self._least is None else outputs

        def _outputs(self, module: Any) -> Any:
            config = getattr(module, "config", None)
            eager = getattr(config, "_attn_implementation", None)
            for batch in self._parent_args_cache[module]:
                if config is not None:
                    config._attn_implementation = "sdpa"
                try:
                    output = module(**batch)
                finally:
                    if config is not None:
                        config._attn_implementation = eager
                yield output[0] if isinstance(output, tuple) else output

        def _compute_loss(self, originals: Any, quantized: Any) -> float:
            count = sum(original.numel() for original in originals)
            if self._gram is not None:
                change = quantized.weight - self._original
                return float((change @ self._gram).mul_(change).sum().item() / count)
            error: float = 0.0
            for original, output in zip(originals, quantized, strict=True):
                error += torch.nn.functional.mse_loss(original, output, reduction="sum").item() / count
                if self._least is not None and error > self._least:
                    return error
            self._least = error
            return error

    return QuickAWQ()


def main(method: str, model: str, windows: str, out: str, group_size: str) -> None:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not torch.cuda.is_available():  # AWQ pins what it keeps, which torch refuses without an accelerator
        torch.Tensor.pin_memory = lambda self, *_: self
    symmetric = method == "gptq"
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=int(group_size)
    )
    groups = {"linears": QuantizationScheme(targets=["Linear"], weights=weights)}
    kept = Path(f"{out}-{Path(windows).stem}-{group_size}.scales")
    scope = {"config_groups": groups, "ignore": ["lm_head"]}
    recipe = {
        "gptq": lambda: [GPTQModifier(**scope)],
        "awq": lambda: [quick_awq(kept), QuantizationModifier(**scope)],
    }[method]()
    tokens = np.load(windows)
    sample = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()})
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    count, length = tokens.shape
    oneshot(
        model=loaded,
        dataset=sample,
        recipe=recipe,
        batch_size=8,
        max_seq_length=length,
        num_calibration_samples=count,
    )
    loaded.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
