"""Attention over examples that stand one after the other in one row, each of which sees itself alone.

Batches are not padded: a step's examples are concatenated, and `example_lengths`, which transformers hands through to
the attention function, says where each ends. Nothing is computed across them, and no mask of [T, T] is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "pagoda_examples"


def attend_examples(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    example_lengths: tuple[int, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, K, T, D] → ([1, T, H, D], None). The lengths add up to T."""
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    parts = zip(*(x.split(example_lengths, dim=2) for x in (query, key, value)), strict=True)
    out = [_attend_one(q, k, v, scaling, dropout, sliding_window, softcap) for q, k, v in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _attend_one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One example's causal attention, [1, H, T, D]; with a window, each token sees itself and window - 1 before it."""
    length = q.shape[2]
    is_plain = window is None or length <= window
    if is_plain and not softcap:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if not is_plain:
        seen = seen.triu(1 - (window or 0))
    if not softcap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling)
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scaling or q.shape[-1] ** -0.5) / softcap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return F.dropout(weights, dropout) @ v


ALL_ATTENTION_FUNCTIONS.register(NAME, attend_examples)
