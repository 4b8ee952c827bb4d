"""Now and then another model of the chain first, so that a ledger can say what another policy would have done.

The chance of what was chosen (its propensity) is kept with the decision; `waybill policy replay` weighs by it. Only work
that can wait is explored with, and nothing outside the route, which has been checked already, is chosen.
"""

from __future__ import annotations

from dataclasses import replace

from policies.routing import Request, Route


def explore(found: Route, request: Request, *, share: float, draw: float) -> tuple[Route, float]:
    """The route with another paid candidate first, or as it is, and how likely that choice was.

    Args:
        found: What routing chose.
        request: Interactive, pinned and local-only jobs are never explored with, nor those that state their own quality.
        share: Of jobs that get a candidate at random, 0..1.
        draw: Uniformly random, 0 <= draw < 1.
    """
    paid = [at for at, candidate in enumerate(found.candidates) if candidate.provider != "local"]
    is_fixed = request.model is not None or request.local_only or request.quality is not None
    if share <= 0 or request.priority != "lo" or is_fixed or len(paid) < 2:
        return found, 1.0
    each = share / len(paid)
    number = int(draw / each) if draw < share else 0
    chance = each + (1 - share if number == 0 else 0.0)
    if number == 0:
        return found, chance
    at = paid[min(number, len(paid) - 1)]
    chosen = replace(found.candidates[at], reason=f"tried at random to learn from it (1 of {1 / each:.0f} jobs)")
    rest = found.candidates[:at] + found.candidates[at + 1 :]
    return replace(found, candidates=(chosen, *rest), reason=chosen.reason), chance
