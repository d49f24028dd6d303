"""The loss of examples under a frozen model and its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pagoda.finetune.data.batches import MicroBatch, micro_batches, num_trained
from pagoda.finetune.data.render import Example
from pagoda.finetune.model.head_loss import Head


def micro_loss(decoder: Any, head: Head, micro: MicroBatch) -> torch.Tensor:
    """Σ -log p of the learned tokens of examples that go through the model together. `decoder` is without its head."""
    hidden = decoder(
        input_ids=torch.from_numpy(micro.ids)[None],
        position_ids=torch.from_numpy(micro.positions)[None],
        use_cache=False,
        example_lengths=micro.lengths,
    ).last_hidden_state[0]
    return head.loss(hidden[torch.from_numpy(micro.rows)], torch.from_numpy(micro.targets))


def mean_loss(decoder: Any, head: Head, examples: Sequence[Example], micro_tokens: int) -> float:
    """The mean loss of all learned tokens of `examples`, without gradients, dropout off."""
    was_training = decoder.training
    decoder.eval()
    with torch.no_grad():
        total = sum(float(micro_loss(decoder, head, micro)) for micro in micro_batches(examples, micro_tokens))
    decoder.train(was_training)
    return total / max(num_trained(examples), 1)
