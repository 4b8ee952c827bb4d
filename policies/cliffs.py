"""Long prompts whose whole price jumps: another model before the cliff where one is cheaper, else a word about splitting.

Above 100,000 prompt tokens Haiku 5.5 costs five times as much for every token of the request, output included; GPT above
272,000 twice as much for the prompt (reference/providers.md 1.1, 2.1). Estimates of candidates are priced by their band already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from policies.catalog import Model
from policies.pricing import PriceBook, estimate_tokens
from waybill.contract import Candidate, Usage


@dataclass(frozen=True, slots=True)
class Cliff:
    """A prompt that is over one.

    Attributes:
        model: Catalogue id.
        tokens: The prompt, estimated.
        band: Prompts up to this many tokens have the lower price.
        factor: The estimated cost over the cost at the lower price.
    """

    model: str
    tokens: int
    band: int
    factor: float

    def __str__(self) -> str:
        return (
            f"a prompt of about {self.tokens:,} tokens costs {self.factor:.1f} times as much on {self.model},"
            f" whose price jumps at {self.band:,}"
        )


def cliff(model: Model, candidate: Candidate, payload_bytes: int, prices: PriceBook, at: datetime) -> Cliff | None:
    """The cliff that the job's prompt is over on this lane; None when it is over none."""
    band = prices.band(model.id, candidate.service, at)
    tokens = estimate_tokens(payload_bytes, model.bytes_per_token)
    if band is None or tokens <= band:
        return None
    rates = prices.rates(model.id, candidate.service, at)
    full = prices.cost(model.id, candidate.service, Usage(input_tokens=tokens), at)
    if rates is None or full is None or not rates.input:
        return None
    return Cliff(model.id, tokens, band, float(full / (tokens * rates.input)))


def before_cliff(candidates: Sequence[Candidate], found: Cliff | None) -> tuple[Candidate, ...]:
    """The candidates with the first cheaper one ahead, when the prompt is over the first one's cliff.

    Later candidates of a chain are at least as strong, so only the price is compared. Without a cheaper one the order stays
    and the first one's reason says what splitting would save.
    """
    head = candidates[0]
    if found is None:
        return tuple(candidates)
    cheaper = next((c for c in candidates[1:] if 0 < c.estimate_usd < head.estimate_usd), None)
    if cheaper is None:
        return (replace(head, reason=f"{head.reason}; {found}: parts below that would be cheaper"), *candidates[1:])
    first = replace(cheaper, reason=f"{found}: {cheaper.model} is cheaper")
    return (first, *(replace(c, reason="before the price jump it would be the first") if c is head else c
                     for c in candidates if c is not cheaper))  # fmt: skip
