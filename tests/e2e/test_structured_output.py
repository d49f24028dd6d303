"""What the real default model writes at temperature 1 under generated schemas: all of it is JSON and valid."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import HealthCheck, Phase, given, settings

from json_schemas import schemas
from pagoda import LLM, GrammarSource, SamplingParams
from pagoda.errors import RequestError

NUM_SCHEMAS = int(os.environ.get("PAGODA_TEST_SCHEMAS", "32"))  # 500 where there is time
QUESTION = "Write an example of JSON."


def test_generated_schemas_are_obeyed(default_model: Path) -> None:
    wanted = _generated(NUM_SCHEMAS)
    with LLM(str(default_model), max_num_seqs=16, max_context=512) as llm:
        accepted = [schema for schema in wanted if _is_accepted(llm, schema)]
        params = SamplingParams(temperature=1.0, seed=11, max_tokens=300)
        grammars = [GrammarSource("json_schema", json.dumps(schema)) for schema in accepted]
        asked = [[{"role": "user", "content": QUESTION}]] * len(grammars)
        outputs = llm.chat(asked, params, grammar=grammars)
    ended = 0
    for schema, output in zip(accepted, outputs, strict=True):
        assert output.outputs[0].finish_reason in ("stop", "length"), (schema, output.outputs[0].error)
        if output.outputs[0].finish_reason == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(output.text))
            ended += 1
    print(f"{len(wanted)} schemas, {len(accepted)} accepted, {ended} answers ended, all valid; the others were cut")
    assert len(accepted) > 0.9 * len(wanted)
    assert ended > 0.25 * len(accepted)  # many are trees and texts without bounds, which run on until they are cut


def _generated(count: int) -> list[dict[str, Any]]:
    """So many different ones."""
    found: dict[str, dict[str, Any]] = {}

    @settings(
        max_examples=2 * count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(schemas())
    def gather(schema: dict[str, Any]) -> None:
        found[json.dumps(schema, sort_keys=True)] = schema

    gather()
    return list(found.values())[:count]


def _is_accepted(llm: LLM, schema: dict[str, Any]) -> bool:
    """Whether it can be enforced; where not, it is refused before anything runs."""
    try:
        llm._grammars.compile(GrammarSource("json_schema", json.dumps(schema)))
    except RequestError as error:
        print("refused:", error)
        return False
    return True
