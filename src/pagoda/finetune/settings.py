"""What a user can say about a fine-tuning run: flags of `pagoda finetune`, or a `[finetune]` table in a TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pagoda.settings import Setting, Settings


@dataclass(frozen=True, slots=True)
class FinetuneSettings(Settings):
    """Flags of `pagoda finetune`."""

    table = "finetune"

    data: Annotated[
        tuple[Path, ...], Setting("JSONL of messages, prompt and completion, or text; or a .txt. Several by commas.")
    ]
    rank: Annotated[int, Setting("Of the adapters' matrices.", minimum=1, maximum=4096)] = 16
    alpha: Annotated[
        float | None,
        Setting("What an adapter adds is multiplied by alpha / rank; by default twice the rank.", minimum=1e-6),
    ] = None
    targets: Annotated[tuple[str, ...], Setting("Matrices that get adapters: q, k, v, o, gate, up, down; or all.")] = (
        "all",
    )
    rslora: Annotated[bool, Setting("Multiply by alpha / sqrt(rank) instead, which large ranks need.")] = False
    dora: Annotated[
        bool,
        Setting("Train each row's length apart from its direction (DoRA): small ranks learn more, steps take longer."),
    ] = False
    dropout: Annotated[float, Setting("Share of an adapter's inputs that is dropped.", minimum=0, maximum=0.9)] = 0.0
    epochs: Annotated[float, Setting("Times that each example is seen.", minimum=0.001)] = 3.0
    max_steps: Annotated[int | None, Setting("Steps in all, in place of epochs.", minimum=1)] = None
    batch: Annotated[int, Setting("Examples of a step.", minimum=1)] = 4
    learning_rate: Annotated[float, Setting("At its highest.", minimum=0, maximum=1)] = 2e-4
    schedule: Annotated[
        Literal["linear", "cosine", "constant"], Setting("How the learning rate goes on after the warm-up.")
    ] = "linear"
    warmup: Annotated[float, Setting("Share of the steps in which it rises.", minimum=0, maximum=1)] = 0.03
    weight_decay: Annotated[float, Setting("AdamW's.", minimum=0, maximum=1)] = 0.0
    max_grad_norm: Annotated[float, Setting("Gradients are scaled down to this norm; 0: never.", minimum=0)] = 1.0
    shuffle: Annotated[bool, Setting("Draw examples in random order; else in the files' own.")] = True
    seed: Annotated[int, Setting("Of adapters, order and split.", minimum=0, maximum=2**32 - 1)] = 0
    max_length: Annotated[
        int | None,
        Setting("Tokens of an example; by default 2048, or the model's context where that is less.", minimum=2),
    ] = None
    too_long: Annotated[
        Literal["drop", "cut"], Setting("What becomes of longer examples; plain texts are always cut into windows.")
    ] = "drop"
    held_out: Annotated[
        float, Setting("Share of the examples that is evaluated on, not trained.", minimum=0, maximum=0.9)
    ] = 0.05
    held_out_data: Annotated[tuple[Path, ...], Setting("Files to evaluate on instead.")] = ()
    eval_every: Annotated[
        int | None, Setting("Steps from evaluation to evaluation; by default ten in a run.", minimum=1)
    ] = None
    patience: Annotated[
        int | None, Setting("Stop after so many evaluations without a better one; by default never.", minimum=1)
    ] = None
    save_every: Annotated[int | None, Setting("Steps from checkpoint to checkpoint; as evaluations.", minimum=1)] = None
    micro_tokens: Annotated[
        int, Setting("Tokens that go through the model at once; a step of more is divided.", minimum=16)
    ] = 512
    checkpointing: Annotated[
        bool,
        Setting("Compute each layer again on the way back, and keep only its input: a third of the speed for memory."),
    ] = True
    activation_type: Annotated[
        Literal["int16", "int8"], Setting("Codes in which activations meet quantized weights, as when served.")
    ] = "int16"
    threads: Annotated[int, Setting("Compute threads; 0: one per physical core allowed.", minimum=0)] = 0
    show: Annotated[int, Setting("Only show so many examples with what is learned of them marked.", minimum=0)] = 0
    force: Annotated[bool, Setting("Replace an adapter that exists, and start over.")] = False
