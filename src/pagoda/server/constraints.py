"""The layer that compiles grammars, on threads of their own that come after all others, and ties requests to them.

What may take long to compile waits in a line of its own, so that it keeps nobody else's grammar waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pagoda.constraint import CompiledConstraint
from pagoda.errors import RequestError
from pagoda.grammar.compiler import GrammarCompiler
from pagoda.grammar.thinking import Marks, Thinking, ThinkingVocabulary
from pagoda.grammar.tokens import GrammarTokenizer
from pagoda.grammar.trial import is_risky
from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.server.output_plan import OutputPlan
from pagoda.text.reasoning import FORMATS

logger = logging.getLogger("pagoda.server")

NICENESS = 10  # the engine's threads and the event loop come first


class Constraints:
    """A layer: requests whose answers are to have a form get the constraint that gives it to them."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiler = GrammarCompiler(tokenizer)
        self._thinking: dict[str, ThinkingVocabulary] = {}  # by format
        self._thread = ThreadPoolExecutor(1, "pagoda-grammars", initializer=_be_nice)
        self._risky = ThreadPoolExecutor(1, "pagoda-risky-grammars", initializer=_be_nice)

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        """Raises RequestError naming the field that asks for a grammar which cannot be had."""
        constraint = await self._of(call.output)
        if constraint is not None:
            call = replace(call, requests=tuple(replace(one, constraint=constraint) for one in call.requests))
        return await serve(call)

    def close(self) -> None:
        for thread in (self._thread, self._risky):
            thread.shutdown(wait=False, cancel_futures=True)

    async def _of(self, plan: OutputPlan) -> CompiledConstraint | None:
        thinks = plan.reasoning is not None and (plan.grammar is not None or plan.thinking_budget is not None)
        thinks = thinks and not plan.grammar_thinks
        if plan.grammar is None and not thinks:
            return None
        answer: CompiledConstraint | None = None if plan.grammar is None else self._compiler.find(plan.grammar)
        if (plan.grammar is not None and answer is None) or (thinks and plan.reasoning not in self._thinking):
            loop = asyncio.get_running_loop()
            is_long = plan.grammar is not None and is_risky(plan.grammar.text)
            answer = await loop.run_in_executor(self._risky if is_long else self._thread, self._prepare, plan)
        if not thinks or (answer is None and plan.thinking_budget is None):
            return answer
        assert plan.reasoning is not None
        vocabulary = self._thinking[plan.reasoning]
        return Thinking(vocabulary, opened=plan.thinking_open, budget=plan.thinking_budget, answer=answer)

    def _prepare(self, plan: OutputPlan) -> CompiledConstraint | None:
        """Compile the grammar, and look through the vocabulary for what thinking needs. On the thread."""
        if plan.reasoning is not None and plan.reasoning not in self._thinking:
            row = FORMATS[plan.reasoning]
            self._thinking[plan.reasoning] = ThinkingVocabulary(self._tokenizer, Marks(row.open, row.close, row.after))
        if plan.grammar is None:
            return None
        try:
            return self._compiler.compile(plan.grammar)
        except RequestError as error:
            if plan.grammar_needed:
                raise RequestError(str(error), param=plan.grammar_param, code="unsupported_grammar") from None
            logger.info("calls are parsed without a grammar: %s", error)
            return None


def _be_nice() -> None:
    if hasattr(os, "setpriority"):  # Linux takes a thread for the process
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        except OSError:
            logger.debug("the thread that compiles grammars keeps its priority")
