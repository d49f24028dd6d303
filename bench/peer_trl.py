"""Ten steps of LoRA by trl over bitsandbytes' NF4 weights (or plain bfloat16): the peer of bench/finetune.py.

    python bench/peer_trl.py FOLDER DATA.jsonl --steps 10 --batch 4 --rank 8 --threads 2 [--plain]

FOLDER is a Hugging Face folder (`pagoda convert MODEL -o FOLDER`), DATA messages whose last one is learned.
Needs torch, transformers, peft, trl, datasets and bitsandbytes. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds of steps alone, and the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds, self._start = 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter() - self._start

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    options = {} if args.plain else {"quantization_config": quantization}
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.bfloat16, **options)
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    records = [json.loads(line)["messages"] for line in open(args.data)]
    rows = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in records]
    lengths = [len(tokenizer.apply_chat_template(messages)["input_ids"]) for messages in records]
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir="/tmp/peer_trl",
            use_cpu=True,
            per_device_train_batch_size=args.batch,
            max_steps=args.steps,
            learning_rate=2e-4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )
    trainer.train()
    tokens = sum(lengths[: args.steps * args.batch])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": clock.seconds, "tokens": tokens, "tokens_per_second": tokens / clock.seconds}
    print(json.dumps({**found, "peak_mb": peak / 1e6, "losses": clock.losses}))


if __name__ == "__main__":
    main()
