"""Plans as values of the Helm chart: they satisfy its schema, and hold the memory that the plan says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pagoda.config import EngineSettings, load_settings
from pagoda.errors import CapacityError
from pagoda.plan.output.helm import as_yaml, helm_values
from pagoda.plan.planner import plan

SCHEMA = json.loads((Path(__file__).parents[2] / "deploy/helm/pagoda/values.schema.json").read_text())
GIB = 1 << 30


def test_values_satisfy_the_chart(tmp_path: Path) -> None:
    target = plan("llama-3-8b", on="l4", format="q4_k_m", concurrency=4).targets[0]
    values = helm_values(target)
    assert yaml.safe_load(as_yaml(values, "about")) == values
    jsonschema.validate(values, SCHEMA)
    config = tmp_path / "pagoda.toml"
    config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values["settings"].items()))
    settings = load_settings(EngineSettings, config=config, environ={})
    assert (settings.backend, settings.max_num_seqs, settings.max_context) == ("cuda", 4, 640)
    assert values["gpu"] == {"count": 1}


def test_a_gpus_replica_has_memory_for_the_file_on_its_way() -> None:
    """4.9 GB of weights (Llama 3 8B in Q4_K_M), and 4 GiB for the process."""
    memory = helm_values(plan("llama-3-8b", on="l4", format="q4_k_m").targets[0])["resources"]["limits"]["memory"]
    assert 8.4 * GIB < int(memory.removesuffix("Mi")) * 2**20 < 9.2 * GIB


def test_what_does_not_fit_has_no_values() -> None:
    with pytest.raises(CapacityError, match="does not fit"):
        helm_values(plan("llama-3-70b", on="l4", format="fp16").targets[0])
