#!/usr/bin/env bash
# outlines-core 0.2.14: a pattern of a JSON schema is left out where a length stands beside it.
#
# JSON schema's keywords all hold at once. `build_regex_from_schema`, whose expression constrains what a model may say,
# takes maxLength or minLength and forgets the pattern, without an error. (llguidance 1.9.1 obeys both.)
#
# Seen: {"type": "string", "pattern": "^[A-Z]{3}$", "maxLength": 3} becomes an expression that '"1"' and '"?!"' match;
# without maxLength they do not.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet outlines-core==0.2.14 llguidance==1.9.1
"$folder/bin/python" - <<'END'
import json
import re

from llguidance import LLMatcher, LLTokenizer
from outlines_core.json_schema import build_regex_from_schema

PATTERN = {"type": "string", "pattern": "^[A-Z]{3}$"}
BOTH = PATTERN | {"maxLength": 3}
TEXTS = ('"ABC"', '"1"', '"?!"')


def by_outlines(schema):
    expression = re.compile(build_regex_from_schema(json.dumps(schema)))
    return [expression.fullmatch(text) is not None for text in TEXTS]


def by_llguidance(schema):
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matchers = [(LLMatcher(LLTokenizer("byte"), grammar), list(text.encode())) for text in TEXTS]
    return [matcher.try_consume_tokens(text) == len(text) and matcher.is_accepting() for matcher, text in matchers]


seen = by_outlines(PATTERN), by_outlines(BOTH), by_llguidance(BOTH)
print(f"{TEXTS}: outlines-core, pattern alone {seen[0]}, with maxLength {seen[1]}; llguidance, both {seen[2]}")
assert seen == ([True, False, False], [True, True, True], [True, False, False]), "outlines-core behaves otherwise now"
END
