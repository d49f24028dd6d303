"""How long a prompt and an answer have taken, in llama-server's form."""

from __future__ import annotations

from typing import Any


def timings(*, num_prompt: int, num_cached: int, prompt_s: float, num_answer: int, answer_s: float) -> dict[str, Any]:
    """`prompt_s` until the first token, `answer_s` from there. The first token counts as the prompt's work."""
    computed = num_prompt - num_cached
    return {
        "cache_n": num_cached,
        **_rates("prompt", computed, computed, prompt_s),
        **_rates("predicted", num_answer, max(num_answer - 1, 0), answer_s),
    }


def _rates(name: str, count: int, timed: int, seconds: float) -> dict[str, Any]:
    """`count` tokens, of which `timed` took that long."""
    return {
        f"{name}_n": count,
        f"{name}_ms": round(seconds * 1000, 3),
        f"{name}_per_token_ms": round(seconds * 1000 / timed, 3) if timed else 0.0,
        f"{name}_per_second": round(timed / seconds, 3) if seconds > 0 else 0.0,
    }
