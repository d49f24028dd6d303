"""Which models one machine serves, and how they share it.

    pagoda serve smollm2-135m qwen2.5-0.5b --models-max 1

A model of which there is more to say is a table of pagoda.toml:

    [[models]]
    model = "smollm2-135m"      # alias, path, hf:… or pypi:…
    name = "small"              # that clients ask for; the model's own otherwise
    preload = true              # at the start, not when it is first asked for
    pinned = true               # never unloaded to make room
    threads = 1                 # any setting of the engine, for this model alone
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pagoda.config import EngineSettings, ServerSettings, load_rows
from pagoda.errors import ConfigError
from pagoda.kv.block_files import parse_offload
from pagoda.observe.cost import CostSettings
from pagoda.settings import fields
from pagoda.settings_file import refuse_unknown

OWN_KEYS = ("model", "name", "preload", "pinned")
# What each model's own server has to know of the settings of the one in front:
SERVERS = ("tool_call_format", "reasoning_format", "max_queue_requests", "max_queue_tokens", "max_body_bytes")


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """One model of several, and the settings of its engine."""

    engine: EngineSettings
    name: str
    preload: bool = False
    pinned: bool = False
    cost: CostSettings = field(default_factory=CostSettings)
    server: ServerSettings = field(default_factory=ServerSettings)  # of its process: only SERVERS are other than usual


def models_of(engine: EngineSettings, names: Sequence[str], config: Path | None) -> tuple[LocalSettings, ...]:
    """The models of the command line, or else those of the file's [[models]]; none: there is one model alone.

    `engine` is what all have in common. Raises ConfigError for two of one name.
    """
    path, rows = load_rows("models", config=config)
    if names:
        found = [_local(engine, {"model": name}, name) for name in names]
    else:
        found = [_local(engine, row, f"{path}: [[models]] number {number}") for number, row in enumerate(rows, 1)]
    if found and (engine.lora or engine.lora_dir is not None):
        given = "lora" if engine.lora else "lora-dir"
        raise ConfigError(
            f"--{given} with several models: say whose adapters these are, as `{given}` in its [[models]]"
        )
    taken = [one.name for one in found]
    for i, name in enumerate(taken):
        if name in taken[:i]:
            raise ConfigError(f"two models are called {name!r}: give one of them another `name` in [[models]]")
    return tuple(found)


def room_for(models: Sequence[object], models_max: int | None) -> int:
    """How many of the models are in memory at once at most: `models_max`, or all where there is no such limit."""
    return min(models_max or len(models), len(models))


def shared(
    models: Sequence[LocalSettings], most: int, cores: int, cost: CostSettings, server: ServerSettings
) -> tuple[LocalSettings, ...]:
    """With what each gets of the machine when `most` of them are in memory (threads, memory, price, own folders), and
    what its server has to know. ConfigError: `server` gives one name to all."""
    if server.served_model_name is not None:
        raise ConfigError("--served-model-name with several models: say whose name it is, as `name` in its [[models]]")
    price = None if cost.price is None else cost.price / most
    own = ServerSettings(**{name: getattr(server, name) for name in SERVERS})
    return tuple(
        replace(one, engine=_share(one.engine, one.name, most, cores), cost=replace(cost, price=price), server=own)
        for one in models
    )


def _share(engine: EngineSettings, name: str, most: int, cores: int) -> EngineSettings:
    return replace(
        engine,
        threads=engine.threads or max(1, cores // most),
        memory_utilization=engine.memory_utilization / most,
        kv_offload=_own_folder(engine, name),
    )


def flags_of(settings: EngineSettings | CostSettings | ServerSettings) -> list[str]:
    """The command line that means these settings; keys are not on it, nor is the model."""
    flags: list[str] = []
    for setting in fields(type(settings)):
        value = getattr(settings, setting.name)
        if setting.about.positional or setting.about.secret or value is None or value == setting.default:
            continue
        if isinstance(value, bool):
            flags.append(f"--{setting.key}" if value else f"--no-{setting.key}")
        else:
            for one in value if setting.many else (value,):
                flags += [f"--{setting.key}", str(one)]
    return flags


def _local(engine: EngineSettings, row: Mapping[str, Any], where: str) -> LocalSettings:
    known = {setting.key: setting for setting in fields(EngineSettings)}
    refuse_unknown(Path(where), "key", row, (*OWN_KEYS, *known))
    for key in ("model", "name"):
        if not isinstance(row.get(key, "x"), str) or not row.get(key, "x"):
            raise ConfigError(f"{where}: {key}: {row[key]!r} is no name")
    if "model" not in row:
        raise ConfigError(f"{where}: model is missing: an alias, a path, hf:… or pypi:…")
    for key in ("preload", "pinned"):
        if not isinstance(row.get(key, False), bool):
            raise ConfigError(f"{where}: {key}: {row[key]!r} is not true or false")
    own = {known[key].name: known[key].parse(value, f"{where}: {key}") for key, value in row.items() if key in known}
    name = str(row.get("name") or _short(row["model"]))
    return LocalSettings(replace(engine, **own), name, row.get("preload", False), row.get("pinned", False))


def _short(model: str) -> str:
    """What `pagoda serve MODEL` would call it: an alias as it is, a file or folder by its own name."""
    last = re.split(r"[/:]", model.rstrip("/"))[-1]
    return last.removesuffix(".gguf")


def _own_folder(engine: EngineSettings, name: str) -> str | None:
    """--kv-offload of one model: one process uses a folder."""
    if engine.kv_offload is None:
        return None
    folder, num_bytes = parse_offload(engine.kv_offload)
    return f"{folder / re.sub(r'[^A-Za-z0-9._-]', '_', name)}:{num_bytes}"
