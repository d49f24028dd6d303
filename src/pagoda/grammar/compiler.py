"""Compiles grammars for one model, once each: what was used lately is kept.

Compiling lets go of the interpreter's lock, but takes from a millisecond to a second; a server calls it on a thread.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from pagoda.errors import RequestError
from pagoda.grammar.constraint import CompiledGrammar
from pagoda.grammar.source import GrammarKind, GrammarSource
from pagoda.grammar.tokens import GrammarTokenizer, Vocabulary
from pagoda.grammar.translation import to_llguidance
from pagoda.grammar.trial import is_risky, try_out
from pagoda.types import UInt32Array

MAX_KEPT = 128  # grammars
MAX_REFUSED = 32  # of those that took too long
MAX_KEPT_CHARS = 8 * 1024 * 1024  # of their sources together

PROBES = 8  # masks that are computed of a new grammar, to see what one takes

# What one step of a grammar may take, in llguidance's units: about 4 ms for the lexer, 3 ms for the parser, and 100 MB.
_LIMITS = LLParserLimits(step_lexer_fuel=50_000, step_max_items=50_000, max_lexer_states=50_000, verbose_errors=False)


class GrammarCompiler:
    """Safe to use from several threads at once; one grammar is compiled at a time, while others may be tried out."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[GrammarSource, CompiledGrammar] = OrderedDict()  # latest used last
        self._num_chars = 0
        self._refused: OrderedDict[GrammarSource, str] = OrderedDict()  # what took too long, and the message
        self._lock = threading.Lock()  # of what is kept
        self._compiling = threading.Lock()

    def find(self, source: GrammarSource) -> CompiledGrammar | None:
        """The grammar, if it is there already."""
        with self._lock:
            found = self._kept.get(source)
            if found is not None:
                self._kept.move_to_end(source)
            return found

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Raises RequestError, which says what is wrong with it, not supported or too complex."""
        found = self.find(source)
        if found is not None:
            return found
        text = to_llguidance(source)
        if is_risky(text):
            self._try_out(source, text)
        with self._compiling:
            found = self.find(source)
            if found is None:
                found = self._compile(source, text)
                self._keep(source, found)
            return found

    def _try_out(self, source: GrammarSource, text: str) -> None:
        """Raises RequestError, the same one at once where a source comes again."""
        with self._lock:
            message = self._refused.get(source)
        if message is None:
            try:
                try_out(text)
                return
            except RequestError as error:
                message = str(error)
            with self._lock:
                self._refused[source] = message
                if len(self._refused) > MAX_REFUSED:
                    self._refused.popitem(last=False)
        raise RequestError(message)

    def _compile(self, source: GrammarSource, text: str) -> CompiledGrammar:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokenizer)
        _check_writable(text, self._vocabulary)
        matcher = LLMatcher(self._vocabulary.for_llguidance, text, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise RequestError(f"the grammar is not accepted: {_explained(matcher.get_error(), source.kind)}")
        compiled = CompiledGrammar(matcher, self._tokenizer.vocab_size)
        _probe(compiled, np.zeros(-(-self._tokenizer.vocab_size // 32), np.uint32))
        return compiled

    def _keep(self, source: GrammarSource, compiled: CompiledGrammar) -> None:
        with self._lock:
            self._kept[source] = compiled
            self._num_chars += len(source.text)
            while len(self._kept) > MAX_KEPT or (self._num_chars > MAX_KEPT_CHARS and len(self._kept) > 1):
                dropped, _ = self._kept.popitem(last=False)
                self._num_chars -= len(dropped.text)


def _check_writable(text: str, vocabulary: Vocabulary) -> None:
    """Raises RequestError where the grammar, written for llguidance, holds characters that its masks cannot lead to."""
    try:
        plain = json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:  # it is in Lark's notation
        plain = text
    if chars := vocabulary.unwritable(plain):
        shown = ", ".join(f"U+{ord(char):04X}" for char in chars[:8])
        raise RequestError(f"the model's vocabulary has no tokens for characters of the grammar: {shown}")


def _probe(compiled: CompiledGrammar, allowed: UInt32Array) -> None:
    """Take a few steps into the grammar. Raises RequestError where they fail or take too long."""
    constraint = compiled.start()
    for _ in range(PROBES):
        error = constraint.fill(allowed)
        if error is not None:
            raise RequestError(error)
        if constraint.finished:
            return
        ids = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little"))
        if not len(ids):
            raise RequestError("the grammar allows no text at all")
        constraint.accept(int(ids[len(ids) // 2]))


def _explained(message: str, kind: GrammarKind) -> str:
    """llguidance's message in this API's terms, less the picture of the grammar that it draws below."""
    if "oneOf constraints are not supported" in message:
        return "oneOf needs options that exclude each other, by type or by a required constant; otherwise use anyOf"
    text = " ".join(line.strip() for line in message.splitlines()[:4] if "|" not in line and line.strip(" ^"))[:500]
    return f"pattern: {text}" if kind == "json_schema" and "regex parse error" in text else text
