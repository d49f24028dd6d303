"""What an output must obey, as a grammar says it: the promise between who compiles constraints and the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class TokenConstraint(Protocol):
    """What one choice may say next, as a grammar does. Token ids are the model's; the end of a text is a token too.

    For one thread at a time, but not always the same: masks are computed beside the model's forward pass.
    """

    @property
    def num_outputs(self) -> int:
        """Tokens accepted so far."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow: the choice has ended, with or without a token that says so."""

    def fill(self, allowed: npt.NDArray[np.uint32]) -> str | None:
        """Set bit i % 32 of allowed[i // 32] where token i may come next, and no other bit. → an error, if any.

        An error means that the choice cannot go on, and why: it ends with it.
        """

    def forced(self) -> Sequence[int]:
        """Tokens that come next whatever the model says, as many as are known; often none. Masks allow no others."""

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens may come next, one after the other. Cheaper than masks, and not to be called often.

        May count a token that the mask would not allow.
        """

    def accept(self, token_id: int) -> None:
        """The token was appended. It must be one that was allowed."""

    def rewind(self, num_outputs: int) -> None:
        """Forget all accepted tokens but the first num_outputs."""


class CompiledConstraint(Protocol):
    """A constraint that many choices obey, each in its own place. Safe to use from several threads at once."""

    def start(self) -> TokenConstraint:
        """A choice that has no tokens yet."""
