"""The training loop: transformers' `Trainer`, told how a step's loss is computed and how the adapter is saved.

Why not trl's SFTTrainer, which is built on the same: what it adds is making tokens and masks of conversations, and it
takes pyarrow and pandas along for that. Masks are made here by the template that serves (`data/render.py`), and the
head's loss needs the model's inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pagoda.errors import QualityError
from pagoda.finetune.data.batches import micro_batches, num_trained
from pagoda.finetune.data.dataset import DataSet
from pagoda.finetune.data.render import Example
from pagoda.finetune.memory import give_back_memory
from pagoda.finetune.model.adapter import save_adapter
from pagoda.finetune.model.head_loss import Head
from pagoda.finetune.model.loss import mean_loss, micro_loss
from pagoda.finetune.schedule import Schedule
from pagoda.finetune.settings import FinetuneSettings

EVAL_LOSS = "eval_loss"


class Examples(torch.utils.data.Dataset):
    """A list as `Trainer` takes it."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> Example:
        return self._examples[i]


class AdapterTrainer(Trainer):
    """Trains `adapted`, a PeftModel, on a data set."""

    def __init__(
        self,
        adapted: Any,
        head: Head,
        data: DataSet,
        settings: FinetuneSettings,
        schedule: Schedule,
        folder: Path,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.head = head
        self._held_out = data.held_out
        self._micro_tokens = settings.micro_tokens
        self.tokens_seen = 0  # by this process
        super().__init__(
            model=adapted,
            args=_arguments(settings, schedule, folder, evaluates=bool(data.held_out)),
            train_dataset=Examples(data.train),
            eval_dataset=Examples(data.held_out) if data.held_out else None,
            data_collator=_collate,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)

    @property
    def decoder(self) -> Any:
        """The adapted model without its head."""
        return self.model.base_model.model.model

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The gradient of the mean loss of all learned tokens of a step's examples, a few of them at a time."""
        model.train()
        count = max(num_trained(inputs["examples"]), 1)
        total = torch.zeros(())
        for micro in micro_batches(inputs["examples"], self._micro_tokens):
            loss = micro_loss(self.decoder, self.head, micro) / count
            loss.backward()
            total += loss.detach()
            self.tokens_seen += len(micro.ids)
            del loss
            give_back_memory()
        if not torch.isfinite(total):
            raise QualityError(
                f"the loss of step {self.state.global_step + 1} is {float(total)}; take a smaller --learning-rate. "
                "Nothing was overwritten: what was kept of the run lies in its folder"
            )
        return total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss of the examples held out."""
        metrics = {EVAL_LOSS: mean_loss(self.decoder, self.head, self._held_out, self._micro_tokens)}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # which `Trainer` would add up, and nobody reads

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_adapter(self.model, Path(output_dir or self.args.output_dir))


def _collate(examples: list[Example]) -> dict[str, Any]:
    return {"examples": examples}


def _arguments(settings: FinetuneSettings, schedule: Schedule, folder: Path, *, evaluates: bool) -> TrainingArguments:
    order = {} if settings.shuffle else {"train_sampling_strategy": "sequential"}
    return TrainingArguments(
        **order,
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=settings.batch,
        max_steps=schedule.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=schedule.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=schedule.eval_every,
        save_strategy="steps",
        save_steps=schedule.save_every,
        save_total_limit=2,
        logging_steps=1,
        bf16=False,  # transformers would take it by default on some CPUs; adapters are trained in float32
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
