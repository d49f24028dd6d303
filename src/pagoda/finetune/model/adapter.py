"""Adapters on a frozen model, by peft: which matrices get them, and the folder that they are saved in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch

from pagoda.errors import ConfigError
from pagoda.finetune.model.adapted import AdaptedLinear
from pagoda.finetune.model.build import FrozenModel
from pagoda.finetune.model.frozen import FrozenLinear
from pagoda.models.family import Family
from pagoda.plan.advice.finetuning import ALL, TARGETS

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def target_modules(family: Family, model: FrozenModel, targets: Sequence[str]) -> list[str]:
    """The modules' last names, such as q_proj. ConfigError for a target that is unknown or not in the model."""
    there = {name.rpartition(".")[2] for name, m in model.causal.named_modules() if isinstance(m, FrozenLinear)}
    if list(targets) == [ALL]:
        return sorted(there)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ConfigError(f"--targets {','.join(unknown)}: adapters go on {', '.join(TARGETS)}, or {ALL}")
    names = {target: family.tensors[TARGETS[target]][1].rpartition(".")[2] for target in targets}
    if missing := [target for target, name in names.items() if name not in there]:
        raise ConfigError(
            f"--targets {','.join(missing)}: this model has no such matrices; it has {', '.join(sorted(there))}"
        )
    return sorted(set(names.values()))


def add_adapter(
    model: FrozenModel,
    modules: Sequence[str],
    *,
    rank: int,
    alpha: float,
    rslora: bool,
    dora: bool = False,
    dropout: float,
    base_name: str,
    seed: int,
) -> Any:
    """A PeftModel with a new adapter, whose product is zero. ConfigError for a rank that no matrix can have."""
    narrowest = min(
        min(m.in_features, m.out_features)
        for name, m in model.causal.named_modules()
        if isinstance(m, FrozenLinear) and name.rpartition(".")[2] in modules
    )
    if rank > narrowest:
        raise ConfigError(f"--rank {rank}: the narrowest matrix that gets an adapter has {narrowest} rows or columns")
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=list(modules),
    )
    config._register_custom_module({FrozenLinear: AdaptedLinear})
    model.causal.name_or_path = base_name  # which peft puts in place of what the config says
    return peft.get_peft_model(model.causal, config)


def num_parameters(adapted: Any) -> int:
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def save_adapter(adapted: Any, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors as peft writes them; each is there whole or not at all."""
    work = folder.with_name(folder.name + ".writing")
    shutil.rmtree(work, ignore_errors=True)
    adapted.save_pretrained(work, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        os.replace(work / name, folder / name)
    shutil.rmtree(work)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    work = path.with_name(path.name + ".writing")
    work.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(work, path)
