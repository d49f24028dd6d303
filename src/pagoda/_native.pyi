"""Types of the native module. Each csrc file that binds something states it here."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# csrc/guard.cpp

def guard_mapping(address: int, bytes: int) -> bool:
    """From now on, pages of a mapped file that are gone read as zeros. False: too many are guarded."""

def unguard_mapping(address: int) -> None: ...
def num_lost_pages() -> int:
    """How many pages of guarded mappings were gone, and read, since the process began."""

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
        top_n_sigma: float,
        typical_p: float,
        xtc_probability: float,
        xtc_threshold: float,
        dynatemp_range: float,
        dynatemp_exponent: float,
        mirostat: int,
        mirostat_tau: float,
        mirostat_eta: float,
        temperature_last: bool,
        dry_multiplier: float,
        dry_base: float,
        dry_allowed_length: int,
        dry_last_n: int,
        dry_breakers: Sequence[Sequence[int]],
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

# csrc/machine.cpp

def measure_read_bandwidth(threads: int, bytes: int = 268_435_456) -> float:
    """Bytes a second that `threads` threads read together of `bytes` of memory; the best of several rounds."""

def measure_cache_bandwidth(threads: int, bytes: int) -> float:
    """Bytes a second that `threads` threads read together when each reads its own `bytes` over and over."""

def measure_int8_peak(threads: int) -> float:
    """Integer operations a second of the best kernels' dot products, in registers; a multiply-add is two."""

def measure_peak(type: str, threads: int) -> float | None:
    """Operations a second in "int8", "bf16" or "fp32"; None where no instruction computes in that type."""

# csrc/quantize.cpp

def quantize(
    x: npt.NDArray[np.float32],
    type: str,
    out: npt.NDArray[np.uint8],
    importance: npt.NDArray[np.float32] | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> int:
    """Encode x [rows, columns] to out [rows, bytes of a row], weighing squared errors by importance [columns].

    → -1, or the flat index of a number that is not finite or too large for the type; out is incomplete then.
    """

# csrc/program_module.cpp; Runtime.matmul and unpack: csrc/products.cpp

def available_isas() -> list[str]:
    """Instruction sets that this build carries and this machine runs, best first."""

def dequantize(data: npt.NDArray[np.uint8], type: str, columns: int, out: npt.NDArray[np.float32]) -> None:
    """Decode rows of `columns` weights into out [rows, columns]."""

def grid(name: str) -> list[int]:
    """The points of the grid of an IQ type, "IQ1" of both of that kind (csrc/grids.cpp). ValueError for others."""

class Weight:
    """A matrix packed for the kernels."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def is_float(self) -> bool: ...

class LinearPart:
    """One weight of a linear stage, or one for each expert: out = scale * (x @ weight.T) + bias, or added to out.

    out: a buffer; None: the logits. site: where adapters add to it, see `add_lora_site`.
    """

    def __init__(
        self,
        weights: list[Weight],
        out: int | None,
        bias: npt.NDArray[np.float32] | None = None,
        accumulate: bool = False,
        scale: float = 1.0,
        site: int | None = None,
    ) -> None: ...

class Adapter:
    """A LoRA adapter of one program; see csrc/adapter.h."""

    @property
    def bytes(self) -> int: ...

class Program:
    """A recorded forward pass; see csrc/program.h. Buffers go by number."""

    profiling: bool
    def add_buffer(self, columns: int, rows: int = 1) -> int:
        """A buffer of so many rows for each token of a step."""
    def add_quantized(self, columns: int, rows: int = 1) -> int: ...
    def add_lora_site(self, rows: int, columns: int) -> int:
        """A linear that adapters may add to, as the stages before and after it name it."""
    def make_adapter(
        self,
        deltas: list[
            tuple[
                int,
                npt.NDArray[np.float32],
                npt.NDArray[np.float32],
                npt.NDArray[np.float32] | None,
                npt.NDArray[np.float32] | None,
            ]
        ],
        type: str,
    ) -> Adapter:
        """For each delta: the site, a [rank, columns], b [rows, rank], bias and row_scale [rows].

        Factors are kept in "f32", "bf16" or "int8".
        """
    def add_rope(self, inv_freq: npt.NDArray[np.float32], scale: float, neox: bool) -> int: ...
    def set_layers(self, layers: list[tuple[int, int, int, int | None]], groups: int) -> None:
        """(KV group, KV heads, head size, `AttentionSpec.values_from`) of each layer."""
    def add(self, kind: str, **fields: object) -> None:
        """Append a stage of this kind; csrc/stages.h says which kinds there are and what their fields are.

        TypeError: a field is missing, unknown or of a wrong type. ValueError: the kernels do not take it.
        """
    def block_bytes(self, group: int) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    def allocate_kv(self, num_blocks: list[int], num_states: int = 0) -> None: ...
    def copy_blocks(self, group: int, pairs: npt.NDArray[np.int32]) -> None: ...
    def read_blocks(self, group: int, blocks: npt.NDArray[np.int32], out: npt.NDArray[np.uint8]) -> None:
        """Blocks of a KV group into out [len(blocks), block_bytes]."""
    def write_blocks(self, group: int, blocks: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> None: ...
    def forward(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        seq_starts: npt.NDArray[np.int32],
        block_tables: list[npt.NDArray[np.int32]],
        logit_rows: npt.NDArray[np.int32],
        hidden_rows: npt.NDArray[np.int32],
        token_types: npt.NDArray[np.int32] | None = None,
        adapters: list[Adapter] = [],
        adapter_of: npt.NDArray[np.int32] | None = None,
        state_starts: npt.NDArray[np.int32] | None = None,
        state_saves: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """adapter_of: for each sequence which of `adapters`, -1: none. States: see `Batch`."""
    def buffer(self, index: int) -> npt.NDArray[np.float32]:
        """A view of a buffer, [rows, columns]."""
    def logits(self) -> npt.NDArray[np.float32]:
        """A view of all logit rows, [max_logit_rows, vocab]."""
    @property
    def buffer_bytes(self) -> int: ...
    def take_profile(self) -> list[tuple[str, str, float, float, float]]:
        """(kind, label for people, seconds, bytes, operations) of each stage, since the last call."""

class Runtime:
    """Threads and the kernels of one instruction set. ValueError for an isa that is not available."""

    def __init__(
        self, threads: int, isa: str | None = None, activation_bits: int = 16, bf16_products: bool = False
    ) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def activation_bits(self) -> int: ...
    @property
    def bf16_products(self) -> bool: ...
    @property
    def isa(self) -> str: ...
    def pack(self, data: npt.NDArray[np.uint8], type: str, rows: int, columns: int) -> Weight: ...
    def pack_all(self, data: list[npt.NDArray[np.uint8]], type: str, rows: int, columns: int) -> list[Weight]:
        """Weights of one type and shape, which the threads pack together."""
    def empty_weight(self, type: str, rows: int, columns: int) -> Weight:
        """What `pack` would allocate, with nothing in it; it takes no memory until somebody touches it."""
    def pack_grouped(
        self,
        type: str,
        codes: npt.NDArray[np.uint8],
        scales: npt.NDArray[np.float32],
        mins: npt.NDArray[np.float32] | None,
        group_shift: int,
        order: npt.NDArray[np.int32] | None = None,
        codebook: npt.NDArray[np.int16] | None = None,
    ) -> Weight:
        """codes [R, C]; scales, mins [R, G] of groups of 32 << group_shift columns in `order`; see csrc/weights.h."""
    def matmul(self, weight: Weight, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """out [T, rows] = x [T, columns] @ weight.T with the kernels' own activation quantization; T up to 4096."""
    def unpack(self, weight: Weight, panel: int, out: npt.NDArray[np.float32] | npt.NDArray[np.uint16]) -> None:
        """The weights of whole panels of 16 rows, from number `panel` on, as numbers: out [columns, rows].

        uint16: the bits of bfloat16. Columns are in packed order; rows past the weight's last are zeros.
        """
    def program(self, max_tokens: int, max_logit_rows: int, kv_type: str) -> Program: ...
