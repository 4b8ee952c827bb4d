"""The step before a call that minds the provider's prompt cache: what is marked, and who goes first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from policies import caching
from policies.caching import BEGIN_S, Caching, Expected, Prefix
from waybill.errors import LedgerUnavailable
from waybill.ledger import turns

if TYPE_CHECKING:
    from workers.attempt import Attempt
    from workers.runtime import Runtime


async def warm(runtime: Runtime, attempt: Attempt) -> None:
    """Decide what the provider is to keep of the call; wait for the one that writes it, or be that one."""
    call, prefix, candidate = attempt.call, attempt.prefix, attempt.candidate
    if attempt.decision is not None or call is None or prefix is None or candidate.provider == "local":
        return
    model = call.model
    rates = runtime.prices.rates(model.id, candidate.service, attempt.started_at)
    if not caching.is_worth_leading(model, prefix) or rates is None:
        attempt.call = replace(call, caching=caching.plan(model, prefix, Expected(), rates))
        return
    name = f"{candidate.provider}/{attempt.account}/{model.id}/{prefix.key}"
    wait_s = caching.wait_s(model, prefix, rates, priority=attempt.priority, slack_s=attempt.history.slack_s)
    entered = await runtime.prefixes.enter(name, wait_s=wait_s, lead_s=BEGIN_S)
    match entered.state:
        case "warm":
            found = caching.reading(model, prefix, is_long=entered.is_long)
        case "plain":
            found = Caching(
                False, key=caching.reading(model, prefix).key, reason="the provider did not keep this prefix"
            )
        case "late":
            found = caching.plan(model, prefix, Expected(entered.others, entered.gap_s), rates)
        case "lead":
            attempt.leads = name
            waiting = entered.others + await _waiting(runtime, prefix)
            found = caching.plan(model, prefix, Expected(waiting, entered.gap_s), rates)
            if not found.mark and model.caching != "implicit":
                abandon(runtime, attempt)
    attempt.prefix_name = name
    attempt.call = replace(call, caching=found, on_begin=lambda _: _begun(runtime, attempt, name, found))


def abandon(runtime: Runtime, attempt: Attempt) -> None:
    """The attempt leads no more and wrote nothing that others could read. Harmless when it does not lead."""
    if attempt.leads is not None:
        name, attempt.leads = attempt.leads, None
        runtime.prefixes.drop(name)


def remember(runtime: Runtime, attempt: Attempt) -> None:
    """Learn from the usage whether the provider keeps this prefix; a leader whose call failed makes room for the next."""
    call, usage, name = attempt.call, attempt.usage_of_answer, attempt.prefix_name
    if call is not None and call.caching is not None and call.caching.mark and attempt.answer is not None and name:
        if usage is not None and usage.prompt_tokens and usage.prompt_tokens == usage.input_tokens:
            attempt.leads = None
            runtime.prefixes.plain(name)
        else:
            _begun(runtime, attempt, name, call.caching)
    abandon(runtime, attempt)


def _begun(runtime: Runtime, attempt: Attempt, name: str, found: Caching) -> None:
    assert attempt.call is not None  # it is under way
    if found.mark or attempt.call.model.caching == "implicit":
        attempt.leads = None
        life_s = caching.lifetime_s(attempt.call.model, is_long=found.is_long)
        runtime.prefixes.begun(name, life_s=life_s, is_long=found.is_long)


async def _waiting(runtime: Runtime, prefix: Prefix) -> int:
    """Jobs with the same prefix that no worker has taken yet; a few are as good as many."""
    try:
        [row] = await runtime.ledger.fetch(turns.ALIKE, {"prefix": prefix.key})
    except LedgerUnavailable:
        return 0
    return int(row["jobs"])
