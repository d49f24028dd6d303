"""llama-server's own /completion and /infill: one object a prompt, and chunks that say `stop` in the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from pagoda.server.answers import CompletionAnswer, prompt_text
from pagoda.server.choice import Choice
from pagoda.server.dialects.llama_schema import SAMPLERS, InfillRequest, LlamaCompletionRequest, LlamaSampling
from pagoda.server.dialects.translated import Translated, given
from pagoda.server.infill import ExtraFile, Infill
from pagoda.server.json_pieces import dumps
from pagoda.server.logprob_json import LOWEST
from pagoda.server.schema import CompletionRequest
from pagoda.types import Delta, Logprob, PromptProgress, TokenLogprobs

SAME = ("model", "stream", "stop", "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p",
        "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold", "presence_penalty", "frequency_penalty",
        "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat",
        "mirostat_tau", "mirostat_eta", "ignore_eos", "grammar", "json_schema", "return_progress")  # fmt: skip
RANDOM_SEED = 2**32 - 1
BANNED = -100.0


def translate_completion(parsed: Any) -> Translated:
    """A request to /completion."""
    body = LlamaCompletionRequest.model_validate(parsed)
    request = CompletionRequest.model_validate({"prompt": body.prompt} | _fields(body))
    several = isinstance(body.prompt, list) and isinstance(body.prompt[0], str)
    return Translated(request, _extra(body) | {"several": several}, may_be_cut=True)


def translate_infill(parsed: Any) -> Translated:
    """A request to /infill."""
    body = InfillRequest.model_validate(parsed)
    prefix = body.input_prefix + (body.prompt or "")
    request = CompletionRequest.model_validate({"prompt": prefix} | _fields(body))
    files = tuple(ExtraFile(extra.filename, extra.text) for extra in body.input_extra or ())
    infill = Infill(prefix, body.input_suffix, files)
    return Translated(request, _extra(body) | {"several": False}, may_be_cut=True, infill=infill)


def _fields(body: LlamaSampling) -> dict[str, Any]:
    """What is asked, in our names."""
    off = set()
    if body.samplers is not None:
        named = {"typ_p" if name == "typical_p" else name for name in body.samplers}
        off = {field for name, fields in SAMPLERS.items() if name not in named for field in fields}
    fields = {name: getattr(body, name) for name in SAME if name not in off}
    bias = {str(int(token)): BANNED if value is False else float(value) for token, value in body.logit_bias or ()}
    seed = None if body.seed is None or body.seed < 0 or body.seed == RANDOM_SEED else body.seed
    return given(
        **fields,
        max_tokens=-1 if body.n_predict is None else body.n_predict,
        repetition_penalty=None if "repeat_penalty" in off else body.repeat_penalty,
        seed=seed,
        logit_bias=bias or None,
        logprobs=body.n_probs or None,
    )


def _extra(body: LlamaSampling) -> dict[str, Any]:
    settings = body.model_dump(exclude={"model", "prompt", "input_prefix", "input_suffix", "input_extra"})
    return {
        "settings": {name: value for name, value in settings.items() if value is not None},
        "return_tokens": bool(body.return_tokens),
        "timings": bool(body.timings_per_token),
        "fields": body.response_fields or [],
    }


class LlamaAnswer(CompletionAnswer):
    """An answer of /completion and /infill."""

    def _whole(self) -> bytes:
        results = [self._result(choice, "".join(choice.texts), choice.token_ids) for choice in self.choices]
        return dumps(results if self.options.extra["several"] else results[0])

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(body) + b"\n\n"

    def _closing(self) -> bytes:
        return b""

    def _event(self, delta: Delta) -> bytes:
        choice, delta = self._take(delta)
        if delta.prompt_progress is not None:
            return self._line(self._partial(choice, "", ()) | {"prompt_progress": _progress(delta.prompt_progress)})
        written = b""
        if delta.text or (delta.token_ids and (self.options.logprobs or self.options.extra["return_tokens"])):
            chunk = self._partial(choice, delta.text, delta.token_ids)
            if self.options.logprobs:
                chunk["completion_probabilities"] = self._probabilities(delta.logprobs or ())
            if self.options.extra["timings"]:
                chunk["timings"] = self.timings(choice)
            choice.new_line = choice.new_line or "\n" in delta.text
            written = self._line(chunk)
        if delta.finish_reason is not None:
            written += self._line(self._result(choice, "", ()))
        return written

    def _line(self, fields: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(fields) + b"\n\n"

    def _partial(self, choice: Choice, text: str, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "index": choice.index,
            "content": text,
            "tokens": list(ids) if self.options.extra["return_tokens"] else [],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": choice.num_tokens,
            "tokens_evaluated": len(choice.prompt.ids),
        }

    def _result(self, choice: Choice, text: str, ids: Sequence[int]) -> dict[str, Any]:
        """The last object of a choice."""
        extra, usage = self.options.extra, choice.usage
        word = choice.stop_reason if isinstance(choice.stop_reason, str) else ""
        kind = "limit" if choice.finish_reason == "length" else "word" if word else "eos"
        result = {
            "index": choice.index,
            "content": text,
            "tokens": list(ids) if extra["return_tokens"] else [],
            "id_slot": -1,
            "stop": True,
            "model": self._common["model"],
            "tokens_predicted": choice.completion_tokens,
            "tokens_evaluated": len(choice.prompt.ids),
            "generation_settings": extra["settings"],
            "prompt": prompt_text(choice.prompt, self.writer),
            "has_new_line": choice.new_line or "\n" in text,
            "truncated": False,
            "stop_type": kind,
            "stopping_word": word,
            "tokens_cached": usage.cached_tokens if usage else 0,
            "timings": self.timings(choice),
        }
        if self.options.logprobs and choice.logprobs:
            result["completion_probabilities"] = self._probabilities(choice.logprobs)
        return _selected(result, extra["fields"]) if extra["fields"] else result

    def _probabilities(self, entries: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        return [self._probability(e.chosen) | {"top_logprobs": [self._probability(t) for t in e.top]} for e in entries]

    def _probability(self, entry: Logprob) -> dict[str, Any]:
        raw = self.writer.bytes_of(entry.token_id)
        said = {"id": entry.token_id, "token": raw.decode("utf-8", "replace"), "bytes": list(raw)}
        return said | {"logprob": max(entry.logprob, LOWEST)}


def _progress(progress: PromptProgress) -> dict[str, int]:
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.computed,
        "time_ms": round(progress.seconds * 1000),
    }


def _selected(result: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The fields of `result` that are named; "a/b" is field b of object a."""
    selected = {}
    for path in paths:
        value: Any = result
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            selected[path.split("/")[-1]] = value
    return selected
