"""Layers of GPTQ, AWQ, compressed-tensors and bitsandbytes checkpoints → planes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pagoda.backends.cuda.planes import PlaneWeight, Scheme, Unpacked, pack
from pagoda.formats.packed import GroupedWeight

PLANES = {1: (2,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (8,), 8: (8,)}
LANES = 128  # columns of a run where a group has 32 or more


def from_grouped(weight: GroupedWeight, device: torch.device) -> PlaneWeight | None:
    """None: its groups are of different sizes, or too small, and it is to be decoded instead."""
    columns = weight.codes.shape[1]
    order = np.argsort(weight.groups, kind="stable")
    numbers, counts = np.unique(weight.groups, return_counts=True)
    group = -(-columns // LANES) * LANES if len(numbers) == 1 else int(counts[0])
    if group % 16 or group % min(group, 32) or (counts[:-1] != counts[0]).any() or counts[-1] > counts[0]:
        return None
    scales, zeros = weight.scales[:, numbers], weight.zeros[:, numbers]
    zero, offsets = 0, None
    if weight.codebook is None and (zeros == zeros.flat[0]).all():
        zero = int(zeros.flat[0])
    elif weight.codebook is None:
        offsets = scales * zeros
    in_order = bool((order == np.arange(columns)).all())
    codes = weight.codes if in_order else weight.codes[:, order]
    unpacked = Unpacked(
        torch.from_numpy(np.ascontiguousarray(codes)).to(device),
        _exact_half(scales, device),
        None if offsets is None else torch.from_numpy(offsets.astype(np.float32)).to(device),
    )
    book = None if weight.codebook is None else torch.from_numpy(weight.codebook.astype(np.float32)).to(device)
    packed = pack(unpacked, Scheme(PLANES[weight.bits], group, zero), codebook=book)
    return packed if in_order else replace(packed, order=torch.from_numpy(order).to(device))


def _exact_half(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], device: torch.device) -> torch.Tensor:
    """As float16 where that loses nothing, as it mostly was in the file."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    exact = bool((half.astype(np.float32) == values).all())
    return torch.from_numpy(half if exact else np.ascontiguousarray(values, np.float32)).to(device)
