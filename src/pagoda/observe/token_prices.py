"""What answers cost that somebody else computes, at so many dollars a million tokens, and what a cache saves of that.

cost = (prompt − cached) · price of a prompt token + cached · price of a cached one + answer · price of its tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pagoda.errors import ConfigError
from pagoda.observe.cost import KEPT, CostLedger
from pagoda.types import Usage

MILLION = 1e6
ANY = "*"


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """USD a million tokens of one model."""

    prompt: float
    completion: float
    cached: float

    def usd(self, usage: Usage) -> float:
        computed = max(0, usage.prompt_tokens - usage.cached_tokens)
        total = computed * self.prompt + usage.cached_tokens * self.cached + usage.completion_tokens * self.completion
        return total / MILLION


def parse_prices(texts: Iterable[str]) -> dict[str, TokenPrice]:
    """By model, of texts such as `gpt-4o=2.5/10/1.25`. Raises ConfigError."""
    prices = {}
    for text in texts:
        model, _, given = text.rpartition("=")
        try:
            numbers = [float(number) for number in given.split("/")]
        except ValueError:
            numbers = []
        if not model or len(numbers) not in (2, 3) or not all(0 <= n < math.inf for n in numbers):
            raise ConfigError(f"--token-price {text!r} is not MODEL=PROMPT/ANSWER or MODEL=PROMPT/ANSWER/CACHED")
        prices[model] = TokenPrice(numbers[0], numbers[1], numbers[-1] if len(numbers) == 3 else numbers[0])
    return prices


class TokenLedger(CostLedger):
    """The account of a gateway: requests pay for tokens, not for a machine's time. Lives on the event loop."""

    counts_time = False

    def __init__(self, prices: Mapping[str, TokenPrice]) -> None:
        super().__init__()
        self._prices = prices
        self._usd: dict[str, float] = {}
        self._saved_usd: dict[str, float] = {}

    @property
    def is_priced(self) -> bool:
        return bool(self._prices)

    def price_of(self, model: str) -> TokenPrice | None:
        """None: nobody has said what the model's tokens cost."""
        return self._prices.get(model) or self._prices.get(ANY)

    def charge(self, request_id: str, tenant: str, model: str, usage: Usage) -> None:
        """An upstream has worked on the request. Tokens that it found in its prefix cache are a saving, too."""
        price = self.price_of(model)
        if price is None:
            return
        usd = price.usd(usage)
        self._usd[request_id] = self._usd.get(request_id, 0.0) + usd
        if len(self._usd) > KEPT:
            del self._usd[next(iter(self._usd))]
        self.series.charged.add((tenant, model), usd)
        self._save("prefix_cache", usage.cached_tokens * (price.prompt - price.cached) / MILLION)

    def save(self, by: str, model: str, usage: Usage) -> None:
        """Something else has answered what would have taken so many tokens."""
        price = self.price_of(model)
        if price is not None:
            self._save(by, price.usd(usage))

    def usd(self, request_id: str) -> float:
        return self._usd.get(request_id, 0.0)

    def update(self) -> None:
        self.series.saved.values = dict(self._saved_usd)

    def _save(self, by: str, units: float) -> None:
        self._saved_usd[by] = self._saved_usd.get(by, 0.0) + units
