"""The OpenAPI document against the server that it describes: no 500, and every answer as documented."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fake_engine import FakeLoaded
from pagoda.server import openapi
from serving import serving

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)

document = openapi.document()
operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serving(FakeLoaded(), cache_store="memory", cache_embedder="none") as served:
        yield served.url


@pytest.mark.parametrize("operation", operations, ids=lambda operation: operation.label)
def test_answers_are_as_documented(operation: APIOperation, base_url: str) -> None:
    """Not by schemathesis' own parametrize: all its tests have one node id, and pytest-xdist runs one of them."""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(operation.as_strategy())
    def answers(case: Case) -> None:
        case.call_and_validate(base_url=base_url, checks=list(CHECKS))

    answers()


def test_numbers_beyond_64_bits_are_refused(base_url: str) -> None:
    """They are said again in the answer, where JSON's writer would not take them."""
    body = {"prompt": "a", "t_max_predict_ms": 2**70}
    assert httpx.post(f"{base_url}/completion", json=body).status_code == 400


def test_the_document_is_served(base_url: str) -> None:
    with urllib.request.urlopen(f"{base_url}/openapi.json") as answer:
        assert json.load(answer) == document


def test_the_document_lists_every_route() -> None:
    assert set(document["paths"]) == {
        "/v1/models", "/v1/models/{model_id}", "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize",
        "/v1/responses", "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel",
        "/v1/messages", "/v1/messages/count_tokens",
        "/completion", "/completions", "/infill", "/apply-template", "/props", "/slots",
        "/api/chat", "/api/generate", "/api/tags", "/api/ps", "/api/show", "/api/version",
        "/health", "/ready", "/version", "/metrics", "/plan",
        "/v1/embeddings", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank",
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/alias_lora_adapter",
        "/v1/cache/entries", "/v1/cache/entries/{id}/wrong",
    }  # fmt: skip


def test_the_document_knows_the_fields() -> None:
    chat: dict[str, Any] = document["components"]["schemas"]["ChatRequest"]
    assert {"messages", "temperature", "top_k", "cache_salt", "continue_final_message"} <= set(chat["properties"])
    assert chat["required"] == ["messages"]
    assert chat["additionalProperties"] is False


def test_limits_go_by_json_schemas_names() -> None:
    """JSON Schema 2020-12, section 6.2 of the validation vocabulary: what goes by another name limits nothing."""
    chat: dict[str, Any] = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 128}
    assert chat["top_k"]["anyOf"][0] == {"type": "integer", "minimum": -1}
    assert chat["seed"]["anyOf"][0] == {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    assert chat["top_p"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}

    def names(schema: Any) -> set[str]:
        parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
        return (set(schema) if isinstance(schema, dict) else set()).union(*map(names, parts))

    assert {"ge", "le", "gt", "lt", "multiple_of"} & names(document) == set()
