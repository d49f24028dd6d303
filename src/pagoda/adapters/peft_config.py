"""adapter_config.json: what peft's LoraConfig says of each module's scale, and what of it is not understood.

The semantics are peft 0.21's: of the keys of `rank_pattern` and `alpha_pattern` that match a module's name, at its end,
the first in the file counts.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda.errors import FormatError, UnsupportedError

log = logging.getLogger(__name__)

# Keys that say nothing of what is computed, whatever their values.
ABOUT = frozenset({
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "modules_to_save",
    "bias", "megatron_core", "qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying",
})  # fmt: skip
READ = frozenset({
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias",
    "fan_in_fan_out", "init_lora_weights",
})  # fmt: skip
# Ways to begin the training that leave the base model's weights as they are; others change them.
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva")

MAX_PATTERN = 256  # characters
MAX_REPEATS = 3  # in one pattern
MAX_REPEATING = 32  # patterns that have any
REPEAT = re.compile(r"(.)[*+]")
SAFE_PATTERN = re.compile(r"(?:[\w.|()\[\]^$*+?-]|\\[.dw])*")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """Scales and ranks by module."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool

    def rank_of(self, module: str) -> int:
        return int(_first_match(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """lora_alpha / r, or over its root."""
        rank = self.rank_of(module)
        return _first_match(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def parse_config(config: Mapping[str, Any], path: str) -> PeftConfig:
    """FormatError for values that cannot be; UnsupportedError names a key that is not understood."""
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{path}: peft_type {config.get('peft_type')!r} is not supported; only LORA is")
    for key, value in config.items():
        if key not in ABOUT and key not in READ and value not in (None, False, {}, []):
            raise UnsupportedError(f"{path}: {key} = {value!r} is not understood, and the adapter would answer wrongly")
    if config.get("fan_in_fan_out"):
        raise UnsupportedError(f"{path}: fan_in_fan_out: only adapters of linears are supported")
    init = config.get("init_lora_weights")
    if init not in PLAIN_INITS:
        raise UnsupportedError(
            f"{path}: init_lora_weights = {init!r} changed the base model's weights; convert the adapter with peft "
            "(path_initial_model_for_weight_conversion), and take that"
        )
    return PeftConfig(
        rank=int(_number(config, "r", 8, path)),
        alpha=_number(config, "lora_alpha", 8, path),
        rank_pattern=_pattern(config, "rank_pattern", path),
        alpha_pattern=_pattern(config, "alpha_pattern", path),
        use_rslora=config.get("use_rslora") is True,
        use_dora=config.get("use_dora") is True,
    )


def _number(config: Mapping[str, Any], key: str, default: float, path: str) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FormatError(f"{key} must be a number, not {value!r}", path=path)
    if key == "r" and not 0 < value < 1 << 20:
        raise FormatError(f"r is {value}, must be from 1 on", path=path)
    return float(value)


def _pattern(config: Mapping[str, Any], key: str, path: str) -> dict[str, float]:
    """Checked for what makes matching slow: the file is anybody's."""
    given = config.get(key) or {}
    if not isinstance(given, Mapping):
        raise FormatError(f"{key} must be an object, not {given!r}", path=path)
    for pattern in given:
        if not _is_quick(pattern):
            raise UnsupportedError(f"{path}: {key}: {pattern[:80]!r} is too intricate; name the modules")
        try:
            re.compile(pattern)
        except re.error as error:
            raise FormatError(f"{key}: {pattern!r} is no pattern: {error}", path=path) from None
    if sum(bool(REPEAT.search(pattern)) for pattern in given) > MAX_REPEATING:
        raise UnsupportedError(f"{path}: {key} has more than {MAX_REPEATING} patterns that repeat; name the modules")
    return {pattern: _number(given, pattern, 0, f"{path}: {key}") for pattern in given}


def _is_quick(pattern: str) -> bool:
    """Whether matching it against a module's name takes no time to speak of: few repeats, and none of groups."""
    repeats = REPEAT.findall(pattern)
    return (
        len(pattern) <= MAX_PATTERN
        and SAFE_PATTERN.fullmatch(pattern) is not None
        and len(repeats) <= MAX_REPEATS
        and ")" not in repeats
    )


def _first_match(patterns: Mapping[str, float], module: str, default: float) -> float:
    found = [key for key in patterns if re.match(rf"(.*\.)?({key})$", module)]
    if len(found) > 1 and len({patterns[key] for key in found}) > 1:
        log.warning("%s is matched by %s: the first counts, as in peft", module, " and ".join(map(repr, found)))
    return patterns[found[0]] if found else default
