"""The series of the semantic cache; all zero where there is none."""

from __future__ import annotations

from pagoda.observe.series import Counter, Gauge, Histogram, LabelledCounter, LabelledGauge

VERDICTS = ("same", "different", "unsure", "failed")
LOOKUP_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


class CacheSeries:
    """Set by the semantic cache. Counters on the event loop and its writer's thread, gauges when someone scrapes."""

    set_by = "the semantic cache"

    def __init__(self) -> None:
        self.hits = LabelledCounter("cache_hits", "Requests answered from the cache.", "reason", unit="requests")
        self.misses = LabelledCounter("cache_misses", "Requests looked up in vain.", "reason", unit="requests")
        self.bypasses = LabelledCounter("cache_bypasses", "Requests not for the cache.", "reason", unit="requests")
        self.lookup = Histogram("cache_lookup_seconds", "A lookup, embedding included.", LOOKUP_SECONDS, "seconds")
        self.saved_tokens = Counter("cache_saved_generation_tokens", "Tokens of answers from the cache.", "tokens")
        self.saved_prompt_tokens = Counter(
            "cache_saved_prompt_tokens", "Prompt tokens not computed for them.", "tokens"
        )
        self.writes = Counter("cache_writes", "Answers kept.", "entries")
        self.lost_writes = Counter("cache_lost_writes", "Answers not kept: the store was away or behind.", "entries")
        self.evictions = Counter("cache_evictions", "Entries removed for age, or since there were too many.", "entries")
        self.entries = Gauge("cache_entries", "Entries in the store.", "entries")
        self.checked_hits = Gauge("cache_checked_hits", "Hits by meaning whose truth was found out.", "requests")
        self.wrong_ratio = Gauge("cache_wrong_hit_ratio", "Wrong ones among checked hits by meaning.", "ratio")
        self.wrong_ratio_low = Gauge("cache_wrong_hit_ratio_low", "Lower end of its 95 % interval.", "ratio")
        self.wrong_ratio_high = Gauge("cache_wrong_hit_ratio_high", "Upper end of its 95 % interval.", "ratio")
        self.wrong_ratio_max = Gauge("cache_wrong_hit_ratio_max", "What the operator allows, of all hits.", "ratio")
        self.judged = LabelledCounter(
            "cache_judged_hits", "Checked hits that a judge was asked about, by what it said.", "verdict", VERDICTS,
            unit="requests",
        )  # fmt: skip
        self.requests = LabelledCounter(
            "cache_requests", "Requests by tenant, adapter and what the cache did.", ("tenant", "adapter", "outcome"),
            unit="requests", limit=300,
        )  # fmt: skip
        self.tenant_saved_tokens = LabelledCounter(
            "cache_tenant_saved_tokens", "Tokens that the cache saved, by tenant and adapter.",
            ("tenant", "adapter", "type"), unit="tokens", limit=200,
        )  # fmt: skip
        self.tenant_checked_hits = LabelledGauge(
            "cache_tenant_checked_hits", "Checked hits by meaning, by tenant.", "tenant", "requests"
        )
        self.tenant_wrong_ratio = LabelledGauge(
            "cache_tenant_wrong_hit_ratio", "Wrong ones among them.", "tenant", "ratio"
        )
        self.tenant_wrong_ratio_low = LabelledGauge(
            "cache_tenant_wrong_hit_ratio_low", "Lower end of its 95 % interval.", "tenant", "ratio"
        )
        self.tenant_wrong_ratio_high = LabelledGauge(
            "cache_tenant_wrong_hit_ratio_high", "Upper end of its 95 % interval.", "tenant", "ratio"
        )
        self.expected_wrong = Gauge("cache_expected_wrong_hits", "Wrong hits to be expected so far.", "requests")

    def count(self, outcome: str, reason: str, tenant: str, adapter: str) -> None:
        """One request more: hit, miss or bypass."""
        {"hit": self.hits, "miss": self.misses, "bypass": self.bypasses}[outcome].add(reason)
        self.requests.add((tenant, adapter, outcome))

    def save(self, tenant: str, adapter: str, num_prompt: int, num_generated: int) -> None:
        """So many tokens were not computed, since the answer was there."""
        self.saved_prompt_tokens.value += num_prompt
        self.saved_tokens.value += num_generated
        self.tenant_saved_tokens.add((tenant, adapter, "prompt"), num_prompt)
        self.tenant_saved_tokens.add((tenant, adapter, "completion"), num_generated)

    def set_checked(self, tenant: str, num_hits: int, share: float, interval: tuple[float, float]) -> None:
        """How many of a tenant's hits by meaning were checked, and which share of them was wrong."""
        self.tenant_checked_hits.values[tenant] = num_hits
        self.tenant_wrong_ratio.values[tenant] = share
        self.tenant_wrong_ratio_low.values[tenant], self.tenant_wrong_ratio_high.values[tenant] = interval
