"""Types of the native module. Each csrc file that binds something states it here."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# csrc/sampler.cpp

class SamplerState:
    """One sequence as the sampler knows it; see pagoda.sampling.base.SamplerState."""

    def __init__(
        self,
        *,
        vocab_size: int,
        prompt_ids: Sequence[int],
        seed: int,
        choice: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        min_tokens: int,
        num_logprobs: int | None,
        allowed_ids: Sequence[int] | None,
        stop_ids: Sequence[int],
        bias: Sequence[tuple[int, float]],
        bad_words: Sequence[Sequence[int]],
    ) -> None: ...
    def accept(self, token_id: int) -> None: ...
    def rewind(self, num_outputs: int) -> None: ...
    @property
    def num_outputs(self) -> int: ...

class BatchSampler:
    """Samples rows with one worker's buffers; one thread at a time."""

    def __init__(self, vocab_size: int, isa: str | None = None) -> None: ...
    def sample(
        self,
        logits: npt.NDArray[np.float32],
        states: tuple[object, ...],
        token_ids: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int32] | None,
        mask_rows: npt.NDArray[np.int32] | None,
        masks: npt.NDArray[np.uint32] | None,
    ) -> tuple[list[tuple[int, str]], list[tuple[int, tuple[float, int, list[int], list[float]]]]] | None: ...
    def distribution(
        self, logits: npt.NDArray[np.float32], state: object, mask: npt.NDArray[np.uint32] | None = None
    ) -> tuple[list[int], list[float]]: ...
    def prompt_logprobs(
        self, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int32], num_top: int
    ) -> list[tuple[float, int, list[int], list[float]]]: ...
    @property
    def isa(self) -> str: ...

def sampler_isas() -> list[str]: ...
