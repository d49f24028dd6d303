"""How much one engine has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.types import BLOCK_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Decided once, when a model is loaded."""

    max_context: int  # tokens of one sequence
    windows: Sequence[int | None]  # of each KV group, in tokens; None: it keeps all of them
    num_blocks: Sequence[int]  # of each KV group; one sequence of max_context tokens must fit in them
    num_states: int = 0  # of models with recurrent layers, at least one
    state_interval: int = BLOCK_SIZE  # tokens between snapshots of a state
    max_batch_tokens: int = 512  # of one step
    max_num_seqs: int = 64
    max_rows: int = 0  # of logits in one step; more than num_seqs are good for drafts and prompt logprobs
    max_loras: int = 8  # adapters of one step

    @property
    def num_seqs(self) -> int:
        """Sequences that may run at once: no more than get a token each in one step."""
        return min(self.max_num_seqs, self.max_batch_tokens)

    @property
    def num_rows(self) -> int:
        """Rows of logits that the model can give in one step, one for each sequence at least."""
        return max(self.max_rows, self.num_seqs)
