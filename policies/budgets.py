"""What a call may take from its budgets: how much it reserves, and what becomes of it when that much is not left.

A budget's `left` is its cap minus what was spent and what is reserved for calls under way. A call starts only after its
amount was reserved in every budget it belongs to (waybill/ledger/budgets.py does that in one statement), and its true cost
takes the place of the reservation when it ends. So calls at the same time cannot spend the same dollar.

An amount is what such calls were seen to cost, not what they could cost at most: clients send max_tokens = 64,000 by
default, which no call uses. Until something is known the most is reserved, or, where less is left, all of it: then one
call at a time finds out. No call is ever allowed to write more than what was left for it pays for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, Literal

from policies.fallback import GiveUp, Reroute

MARGIN: Final = Decimal("1.25")
"""On top of what nine of ten such calls cost: the tenth and a prompt that is longer than estimated."""
LIKELY_OUTPUT_TOKENS: Final = 1024
"""What an answer is taken for as long as none was seen."""
LEAST_OUTPUT_TOKENS: Final = 16
"""Both providers refuse or waste calls that may write less."""
BUSY_S: Final = 0.4
"""How long a job waits for reservations of other calls to be settled."""
PATROL_S: Final = 60.0
"""How often a job that waits for a new cap or period asks again by itself."""


class AtCap(StrEnum):
    """What becomes of a job that its budget does not pay for."""

    STOP = "stop"
    """It fails with `budget_exhausted`."""
    PARK = "park"
    """It waits until the period is over or somebody raises the cap."""
    CHEAPER = "cheaper"
    """It takes the first cheaper model of its route that can still be paid for (our own models always can), else it fails."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a call to a lane costs, in USD: its prompt, and each token of its answer."""

    prompt_usd: Decimal
    token_usd: Decimal


@dataclass(frozen=True, slots=True)
class Ask:
    """What a call wants to reserve.

    Attributes:
        amount: USD.
        least: What it starts with if no more is left, <= amount; equal to it when costs are known from experience.
    """

    amount: Decimal
    least: Decimal


@dataclass(frozen=True, slots=True)
class View:
    """A budget as a call that it refused found it.

    Attributes:
        whose: `tenant`, `key` or `run`.
        period: `total`, `day` or `month`.
        resets_in_s: None when it never begins anew.
    """

    whose: str
    period: str
    cap_usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal
    at_cap: AtCap
    resets_in_s: float | None

    @property
    def left_usd(self) -> Decimal:
        """What can be reserved now, >= 0."""
        return max(Decimal(0), self.cap_usd - self.spent_usd - self.reserved_usd)


@dataclass(frozen=True, slots=True)
class Hold:
    """The job gives its claim back and asks again after `delay_s`; `code` stands on it meanwhile."""

    delay_s: float
    code: Literal["budget_busy", "budget_exhausted"]
    reason: str


def ask(rates: Rates, *, limit: int, learned: int | None) -> Ask:
    """What a call reserves.

    Args:
        rates: Of its lane and prompt.
        limit: Most tokens the answer may have, > 0.
        learned: Tokens that nine of ten such answers do not exceed; None = too few were seen.
    """
    most = rates.prompt_usd + limit * rates.token_usd
    if learned is None:
        return Ask(most, min(most, rates.prompt_usd + LIKELY_OUTPUT_TOKENS * rates.token_usd))
    amount = min(most, (rates.prompt_usd + learned * rates.token_usd) * MARGIN)
    return Ask(amount, amount)


def settle_for(wanted: Ask, left_usd: Decimal) -> Decimal | None:
    """What a call reserves where only `left_usd` is left; None = it cannot start now."""
    if left_usd >= wanted.amount:
        return wanted.amount
    return left_usd if left_usd >= wanted.least and left_usd > 0 else None


def affordable_tokens(rates: Rates, *, limit: int, left_usd: Decimal) -> int:
    """Most tokens the answer may have, so that the call cannot cost more than what was left for it; at least 16."""
    if rates.token_usd <= 0:
        return limit
    paid = int((left_usd - rates.prompt_usd) / rates.token_usd)
    return min(limit, max(LEAST_OUTPUT_TOKENS, paid))


def turned_down(
    views: Sequence[View], wanted: Ask, *, index: int, likely: Sequence[Decimal | None]
) -> Hold | Reroute | GiveUp:
    """What becomes of a job that did not get its reservation.

    Args:
        views: The budgets that refused it, at least one.
        wanted: What it asked for.
        index: Its candidate.
        likely: For each candidate of its route what a call is likely to cost; None = has no price.
    """
    spent_up = [view for view in views if view.spent_usd + wanted.least > view.cap_usd]
    if not spent_up:
        return Hold(BUSY_S, "budget_busy", f"{_name(views[0])} is reserved for calls under way")
    # The strictest budget speaks: one that stops before one that waits.
    view = min(spent_up, key=lambda v: (AtCap.STOP, AtCap.CHEAPER, AtCap.PARK).index(v.at_cap))
    reason = (
        f"{_name(view)} is used up: ${view.spent_usd.normalize():f} spent, this call needs about"
        f" ${wanted.least.quantize(Decimal('0.000001')).normalize():f}"
    )
    if view.at_cap is AtCap.PARK:
        return Hold(min(PATROL_S, view.resets_in_s or PATROL_S), "budget_exhausted", reason)
    if view.at_cap is AtCap.CHEAPER:
        room = min(v.cap_usd - v.spent_usd for v in spent_up)
        other = cheaper(likely, index, room)
        if other is not None:
            return Reroute(other, reason)
    return GiveUp("budget_exhausted", reason)


def cheaper(likely: Sequence[Decimal | None], index: int, room_usd: Decimal) -> int | None:
    """The first other candidate that costs less than the one at `index` and no more than `room_usd`; None without one."""
    here = likely[index]
    for other, usd in enumerate(likely):
        if usd is not None and other != index and usd <= max(room_usd, Decimal(0)) and (here is None or usd < here):
            return other
    return None


def _name(view: View) -> str:
    period = "" if view.period == "total" else f" per {view.period}"
    return f"the {view.whose}'s budget of ${view.cap_usd.normalize():f}{period}"


@dataclass(frozen=True, slots=True)
class Account:
    """A budget's arithmetic as the ledger does it in SQL: the model that tests compare both with.

    Attributes:
        cap_usd: >= 0.
        spent_usd: What ended calls cost.
        reserved_usd: For calls under way, >= 0.
    """

    cap_usd: Decimal
    spent_usd: Decimal = Decimal(0)
    reserved_usd: Decimal = Decimal(0)

    def reserve(self, usd: Decimal) -> Account | None:
        """With `usd` reserved; None when it does not fit."""
        if self.spent_usd + self.reserved_usd + usd > self.cap_usd:
            return None
        return Account(self.cap_usd, self.spent_usd, self.reserved_usd + usd)

    def book(self, *, released: Decimal, spent: Decimal) -> Account:
        """A call has ended: its reservation is free again, its cost is spent."""
        return Account(self.cap_usd, self.spent_usd + spent, max(Decimal(0), self.reserved_usd - released))
