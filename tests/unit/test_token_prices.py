"""Prices of tokens: what answers cost, and what is saved."""

from __future__ import annotations

import pytest

from pagoda.errors import ConfigError
from pagoda.observe.token_prices import TokenLedger, parse_prices
from pagoda.types import Usage

PRICES = parse_prices(["gpt-4o=2.5/10/1.25", "*=1/2"])


def test_an_answer_costs_its_tokens() -> None:
    # OpenAI's list: 2.50 USD a million tokens of a prompt, 1.25 of those cached, 10.00 of an answer
    assert PRICES["gpt-4o"].usd(Usage(1_000_000, 100_000, 400_000)) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25 + 0.1 * 10)
    assert PRICES["*"].usd(Usage(1_000_000, 0, 500_000)) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["gpt-4o", "=1/2", "m=1", "m=1/2/3/4", "m=a/b", "m=-1/2", "m=inf/1", "m=nan/1"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--token-price"):
        parse_prices([text])


def test_a_ledger_charges_and_saves() -> None:
    ledger = TokenLedger(PRICES)
    ledger.charge("r", "t", "gpt-4o", Usage(1000, 100, 400))
    ledger.charge("r", "t", "gpt-4o", Usage(1000, 0, 0))
    ledger.save("semantic_cache", "other", Usage(1000, 1000, 0))
    ledger.update()
    assert ledger.usd("r") == pytest.approx((600 * 2.5 + 400 * 1.25 + 100 * 10 + 1000 * 2.5) / 1e6)
    assert ledger.series.charged.values[("t", "gpt-4o")] == pytest.approx(ledger.usd("r"))
    assert ledger.series.saved.values == {
        "prefix_cache": pytest.approx(400 * 1.25 / 1e6),
        "semantic_cache": pytest.approx(3000 / 1e6),
    }
    assert ledger.usd("unknown") == 0


def test_without_a_price_nothing_costs() -> None:
    ledger = TokenLedger(parse_prices(["a=1/1"]))
    ledger.charge("r", "", "b", Usage(1000, 1000, 0))
    assert (ledger.usd("r"), ledger.is_priced, TokenLedger({}).is_priced) == (0, True, False)
