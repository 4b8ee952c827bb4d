"""A sample of an input on several models: what the whole would cost on each, and how far their answers agree. Before a run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from policies.agreement import agreement
from producers.batch import BatchSpec, check, check_services
from producers.inputs import Row, Source, reading
from producers.refusal import Refused
from producers.template import FieldProblem
from waybill.client import AsyncClient, Outcome
from waybill.contract import Job

_SEED: Final = 0
"""The same command compares the same rows."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One model on the sample.

    Attributes:
        answered, failed: Rows with and without an answer.
        usd: What the sample cost, failed rows included; None when a call had no known price.
        all_usd: The same for each row of the input.
        agreement: Mean over the rows that both answered with the first model's answers; None for the first, or if none compares.
        texts: Rows on which both wrote free text that differs: whether it says the same is for a reader.
    """

    model: str
    answered: int
    failed: int
    usd: Decimal | None
    all_usd: Decimal | None
    agreement: float | None
    texts: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of the input, rows sampled, and each model in the order given."""

    rows: int
    sampled: int
    models: tuple[Compared, ...]


async def compare(
    spec: BatchSpec, client: AsyncClient, models: Sequence[str], *, sample: int, timeout_s: float | None = None
) -> Comparison:
    """Ask each model about a random sample of the rows.

    Raises:
        Refused: The command cannot be carried out; nothing was submitted.
    """
    plans = [await asyncio.to_thread(check, replace(spec, model=model), client) for model in models]
    await check_services(client)
    rows = await asyncio.to_thread(_draw, plans[0].source, spec.limit, sample)
    jobs: list[Job] = []
    problems: list[str] = []
    for plan in plans:
        for row in rows:
            try:
                prompt = plan.template.render(row.fields, filled=spec.filled)
            except FieldProblem as exc:
                problems.append(f"{row.place}: {exc}")
                continue
            jobs.append(client.make_job(**{**plan.job, "prompt": prompt, "reuse": False}))
    if problems:
        raise Refused(f"{len(problems) // len(plans)} of the sampled rows cannot be asked; the first: {problems[0]}")
    ids = await client.submit_many(jobs)
    outcomes = {outcome.job_id: outcome async for outcome in client.results(ids, timeout_s=timeout_s)}
    by_model = [[outcomes[job_id] for job_id in ids[at : at + len(rows)]] for at in range(0, len(ids), len(rows))]
    total = plans[0].survey.rows
    return Comparison(
        rows=total,
        sampled=len(rows),
        models=tuple(
            _compared(model, own, by_model[0] if number else None, total)
            for number, (model, own) in enumerate(zip(models, by_model, strict=True))
        ),
    )


def _draw(source: Source, limit: int | None, sample: int) -> list[Row]:
    """A sample of the rows that can be read, in their order; memory holds the sample alone."""
    rng = random.Random(_SEED)
    kept: list[Row] = []
    seen = 0
    with reading(source, limit) as rows:
        for row in rows:
            if row.problem is not None:
                continue
            seen += 1
            if len(kept) < sample:
                kept.append(row)
            elif (at := rng.randrange(seen)) < sample:
                kept[at] = row
    return sorted(kept, key=lambda row: row.number)


def _compared(model: str, own: Sequence[Outcome], first: Sequence[Outcome] | None, total: int) -> Compared:
    prices = [outcome.usd for outcome in own]
    usd = None if any(price is None for price in prices) else sum(prices, start=Decimal(0))
    shares: list[float] = []
    texts = 0
    for mine, other in zip(own, first or (), strict=False):
        if mine.result is None or other.result is None:
            continue
        pair = [r.text if r.data is None else r.data for r in (mine.result, other.result)]
        share = agreement(*pair)
        texts += share is None
        if share is not None:
            shares.append(share)
    answered = sum(outcome.result is not None for outcome in own)
    return Compared(
        model=model,
        answered=answered,
        failed=len(own) - answered,
        usd=usd,
        all_usd=None if usd is None else usd / len(own) * total,
        agreement=sum(shares) / len(shares) if shares else None,
        texts=texts,
    )


def text(comparison: Comparison) -> str:
    """For people."""
    lines = [
        f"{comparison.sampled} of {comparison.rows:,} rows asked of each model.",
        f"  {'':<24} {'answered':>9} {'failed':>7} {'USD sample':>12} {'USD all rows':>13} {'agrees with first':>18}",
    ]
    for each in comparison.models:
        share = "" if each.agreement is None else f"{each.agreement:.1%}"
        if each.texts:
            share = f"{share} ({each.texts} texts differ)".strip()
        lines.append(
            f"  {each.model:<24} {each.answered:>9} {each.failed:>7} {_usd(each.usd):>12} {_usd(each.all_usd):>13} {share:>18}"
        )
    return "\n".join(lines)


def _usd(usd: Decimal | None) -> str:
    return "unpriced" if usd is None else f"{usd:.6f}"
