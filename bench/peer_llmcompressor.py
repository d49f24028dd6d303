"""llm-compressor's GPTQ or AWQ of a model on given tokens, with its own defaults; run by its own Python.

python bench/peer_llmcompressor.py gptq|awq MODEL TOKENS.npy OUT GROUP_SIZE
"""

from __future__ import annotations

import sys

import numpy as np


def main(method: str, model: str, windows: str, out: str, group_size: str) -> None:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not torch.cuda.is_available():  # AWQ pins what it keeps, which torch refuses without an accelerator
        torch.Tensor.pin_memory = lambda self, *_: self
    symmetric = method == "gptq"
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=int(group_size)
    )
    groups = {"linears": QuantizationScheme(targets=["Linear"], weights=weights)}
    recipe = {
        "gptq": lambda: [GPTQModifier(config_groups=groups, ignore=["lm_head"])],
        "awq": lambda: [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])],
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
