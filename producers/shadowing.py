"""A sample of finished jobs asked again of another model, within a budget, and what the comparison says of both.

How they are asked and compared: policies/checking.py. All calls are batch work, and are booked as checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from policies.cascading import prompt_of
from policies.checking import again, compared, grades_of, judge_question, judged, reckoned
from policies.policyfile import Policy
from policies.pricing import PriceBook
from waybill.client import AsyncClient, Outcome
from waybill.contract import GradeSource
from waybill.errors import ConfigError, ResultTimeout
from waybill.ledger import replays


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What a shadow run came to.

    Attributes:
        asked: Jobs asked again.
        compared: Of those, compared in normal form; `judged`: read by the flagship; `failed`: without an answer.
        usd: What the calls cost; `expected_usd`: what was reckoned with before.
        agreement: Mean score of the other model's answers beside the flagship's; None when nothing came of it.
        left_out: Fit jobs that the budget did not reach.
    """

    asked: int
    compared: int
    judged: int
    failed: int
    usd: Decimal
    expected_usd: Decimal
    agreement: float | None
    left_out: int


async def shadow(
    client: AsyncClient,
    policy: Policy,
    *,
    model: str,
    sample: int,
    budget_usd: Decimal,
    intent: str | None = None,
    tenant: str | None = None,
    since_s: float = 30 * 86400.0,
    timeout_s: float = 3600.0,
) -> Shadowed:
    """Ask `model` again what others have answered and grade both.

    Args:
        model: The flagship, or a model to be compared with answers that the flagship gave.
        budget_usd: Jobs are taken while the reckoned cost of their calls stays within it.

    Raises:
        ConfigError: The model is not known or has no price, or no job fits.
        ResultTimeout: Not all calls ended in time; what ended is graded, and the rest by the next command.
    """
    if model not in policy.models:
        raise ConfigError(f"--model {model}: not in the catalogue; known: {', '.join(sorted(policy.models))}")
    asked_for = {
        "model": model, "flagship": policy.flagship, "sample": sample, "intent": intent, "tenant": tenant, "since_s": since_s,
    }  # fmt: skip
    found = await client.ledger.fetch(replays.SHADOWABLE, asked_for)
    # Pictures and tools: an answer may be no text, and a judge could not see all that was asked.
    rows = [row for row in found if prompt_of(row["payload"]) is not None]
    if not rows:
        whose = "" if model == policy.flagship else f" by {policy.flagship}"
        raise ConfigError(
            f"no job answered{whose} within this period is left to be asked of {model}; give a longer --since"
        )
    taken, expected = _within(budget_usd, rows, policy, model)
    if not taken:
        raise ConfigError(f"--budget {budget_usd}: one call is reckoned at more; raise it")
    ids = await client.submit_many([again(row, model) for row in taken])
    await client.ledger.fetch(replays.MARK, {"ids": ids, "abouts": [row["id"] for row in taken], "kind": "shadow"})
    late = None
    outcomes: list[Outcome] = []
    try:
        outcomes = [outcome async for outcome in client.results(ids, timeout_s=timeout_s)]
    except ResultTimeout as exc:
        late = exc
        outcomes = await client.outcomes(ids)
    scores, texts = await _compare(client, policy, [outcome.job_id for outcome in outcomes])
    judge_scores, judge_usd = await _judge(client, policy, texts, timeout_s) if texts else ([], Decimal(0))
    if late is not None:
        raise late
    spent = sum((outcome.usd or Decimal(0) for outcome in outcomes), start=judge_usd)
    every = [*scores, *judge_scores]
    return Shadowed(
        asked=len(taken),
        compared=len(scores),
        judged=len(judge_scores),
        failed=len(taken) - len(scores) - len(judge_scores),
        usd=Decimal(spent),
        expected_usd=expected,
        agreement=sum(every) / len(every) if every else None,
        left_out=len(rows) - len(taken),
    )


def _within(
    budget: Decimal, rows: Sequence[Mapping[Any, Any]], policy: Policy, model: str
) -> tuple[list[Mapping[Any, Any]], Decimal]:
    prices, now = PriceBook(policy), datetime.now(UTC)
    taken, total = [], Decimal(0)
    for row in rows:
        usd = reckoned(row, model, policy, prices, now, service="interactive")
        if usd is None:
            raise ConfigError(
                f"{model} or {policy.flagship} has no known price, so no budget can be kept; add it to [prices]"
            )
        if total + usd <= budget:
            taken.append(row)
            total += usd
    return taken, total


async def _compare(
    client: AsyncClient, policy: Policy, ids: Sequence[str]
) -> tuple[list[float], list[Mapping[Any, Any]]]:
    """Grade what can be compared; the scores of the model beside the flagship, and the free texts left to be read."""
    rows = await client.ledger.fetch(replays.CHECKED, {"ids": list(ids)})
    scored = [(row, compared(row)) for row in rows]
    graded = [(row, score, 1.0) for row, score in scored if score is not None]
    await _write(client, policy, graded, GradeSource.SHADOW)
    return [score for _, score, _ in graded], [row for row, score in scored if score is None]


async def _judge(
    client: AsyncClient, policy: Policy, rows: Sequence[Mapping[Any, Any]], timeout_s: float
) -> tuple[list[float], Decimal]:
    jobs = [judge_question(row, policy.flagship) for row in rows]
    ids = await client.submit_many(jobs)
    await client.ledger.fetch(replays.MARK, {"ids": ids, "abouts": [row["about"] for row in rows], "kind": "judge"})
    by_id = dict(zip(ids, rows, strict=True))
    graded: list[tuple[Mapping[Any, Any], float, float]] = []
    usd = Decimal(0)
    async for outcome in client.results(ids, timeout_s=timeout_s):
        usd += outcome.usd or Decimal(0)
        if outcome.result is None:
            continue
        row = by_id[outcome.job_id]
        served, check = judged(row["about"], outcome.result.data)
        other, flagship = (check, served) if row["check_model"] != policy.flagship else (served, check)
        graded.append((row, other, flagship))
    await _write(client, policy, graded, GradeSource.JUDGE)
    return [other / flagship if flagship else 1.0 for _, other, flagship in graded], usd


async def _write(
    client: AsyncClient, policy: Policy, graded: Sequence[tuple[Mapping[Any, Any], float, float]], source: GradeSource
) -> None:
    if graded:
        await client.ledger.fetch(replays.GRADE, grades_of(graded, policy.flagship) | {"source": source.value})
