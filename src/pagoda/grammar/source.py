"""What an answer may be asked to look like: a kind of grammar, and its text.

json_object      any JSON object; no text
json_schema      a JSON Schema, as JSON
regex            a regular expression of Rust's syntax that the whole answer matches
choice           a JSON list of strings, one of which the answer is
lark             a grammar in llguidance's dialect of Lark
gbnf             a grammar of llama.cpp
structural_tag   free text in which a trigger begins a tag, whose inside follows a schema: JSON as vLLM takes it
built            Lark that Pagoda made itself, of parts that were checked before
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark", "gbnf", "structural_tag", "built"]


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A grammar as it was asked for. Equal sources are compiled once."""

    kind: GrammarKind
    text: str = ""
