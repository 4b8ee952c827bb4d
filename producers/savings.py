"""What was saved, against the flagship and against the best single model, with the quality beside it.

Everything counts as spent: answers, answers that were rejected (local ones too), failed and lost calls, shadows and judges.
The flagship's side is what the tokens of the answers alone would have cost on it. Money is exact; ratios are floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from typing import TYPE_CHECKING, Any, Final

from policies.evaluate.bounds import Quality
from policies.policyfile import Policy
from policies.pricing import PriceBook
from policies.quality import Standing, Sums, cautious_quality, standing, sums, weigh
from producers.report import exact
from waybill.contract import AttemptState, Usage
from waybill.ledger import grades
from waybill.ledger import savings as sql

if TYPE_CHECKING:
    from waybill.ledger.engine import Ledger

ANSWERS, REJECTED, FAILED, CHECKS = "answers", "rejected answers", "failed or lost calls", "shadows and judges"
PURPOSES: Final = (ANSWERS, REJECTED, FAILED, CHECKS)


@dataclass(slots=True)
class Money:
    """What one intent, or all, came to.

    Attributes:
        spent: USD by purpose.
        calls: By purpose.
        flagship_usd: The answers' tokens on the flagship.
        usage: Of the answers.
        cache_write_usd: The part of `spent` that wrote prompt caches.
        estimated_usd: The part of `spent` that is an upper estimate.
        unpriced: Calls without a price; missing in `spent`.
        cpu_s: CPU of our own models, which no money in `spent` stands for.
    """

    spent: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(PURPOSES, Decimal(0)))
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0))
    flagship_usd: Decimal = Decimal(0)
    usage: Usage = field(default_factory=Usage)
    cache_write_usd: Decimal = Decimal(0)
    estimated_usd: Decimal = Decimal(0)
    unpriced: int = 0
    cpu_s: float = 0.0

    @property
    def usd(self) -> Decimal:
        """All that was spent."""
        return sum(self.spent.values(), start=Decimal(0))


@dataclass(frozen=True, slots=True)
class Single:
    """All answers by one model instead: what it would have cost, and whether its quality is shown for every intent."""

    model: str
    usd: Decimal
    worst: Quality | None
    passes: bool


@dataclass(frozen=True, slots=True)
class Savings:
    """The report."""

    since_s: float
    flagship: str
    target: float | None
    total: Money
    intents: Mapping[str, Money]
    by_model: Mapping[str, Decimal]
    singles: Sequence[Single]
    served: Mapping[str, tuple[int, Sums]]
    standings: Sequence[Standing]

    @property
    def best_single(self) -> Single:
        """The cheapest model that is shown to keep the target everywhere: the flagship where no other one is."""
        return min((single for single in self.singles if single.passes), key=lambda single: single.usd)

    def quality(self, intent: str) -> Quality | None:
        """Of the answers served, relative to the flagship; None without grades of both."""
        _, graded = self.served.get(intent, (0, Sums(0, 0.0, 0.0)))
        flagship = next((s.sums for s in self.standings if s.intent == intent and s.model == self.flagship), None)
        return cautious_quality(graded, flagship)


async def read_savings(
    ledger: Ledger,
    policy: Policy,
    *,
    since_s: float,
    tenant: str | None = None,
    run_id: str | None = None,
) -> Savings:
    """The report of the jobs of a period.

    Raises:
        LedgerUnavailable: Postgres does not answer.
    """
    chosen = {"since_s": since_s, "tenant": tenant, "run": run_id}
    known = await ledger.fetch(grades.STANDINGS, {"flagship": policy.flagship, "since_s": grades.SINCE_S})
    spent = await ledger.fetch(sql.SPENT, chosen)
    served = await ledger.fetch(sql.SERVED, {**chosen, "flagship": policy.flagship})
    return add_up(policy, [standing(row) for row in known], spent, served, since_s=since_s, now=datetime.now(UTC))


def add_up(
    policy: Policy,
    standings: Sequence[Standing],
    spent: Sequence[Mapping[Any, Any]],
    served: Sequence[Mapping[Any, Any]],
    *,
    since_s: float,
    now: datetime,
) -> Savings:
    """Rows of SPENT and SERVED -> the report."""
    prices = PriceBook(policy)
    total = Money()
    intents: dict[str, Money] = {}
    by_model: dict[str, Decimal] = {}
    for row in spent:
        by_model[row["model"]] = by_model.get(row["model"], Decimal(0)) + row["usd"]
        for money in (total, intents.setdefault(row["intent"], Money())):
            _add(money, row, prices, now)
    return Savings(
        since_s=since_s,
        flagship=policy.flagship,
        target=policy.quality,
        total=total,
        intents=dict(sorted(intents.items())),
        by_model=dict(sorted(by_model.items())),
        singles=_singles(policy, prices, standings, total, intents, now),
        served={row["intent"]: (row["jobs"], sums(row)) for row in served},
        standings=standings,
    )


def _add(money: Money, row: Mapping[Any, Any], prices: PriceBook, now: datetime) -> None:
    purpose = _purpose(row)
    money.spent[purpose] += row["usd"]
    money.calls[purpose] += row["calls"]
    money.estimated_usd += row["estimated_usd"]
    money.unpriced += row["unpriced"]
    money.cpu_s += row["cpu_s"]
    rates = prices.rates(row["model"], row["service"], now)
    if rates is not None:
        money.cache_write_usd += (
            row["cache_write_tokens"] * rates.cache_write + row["cache_write_1h_tokens"] * rates.cache_write_1h
        )
    if purpose == ANSWERS:
        money.flagship_usd += row["flagship_usd"]
        names = Usage.__slots__
        money.usage = Usage(**{name: getattr(money.usage, name) + row[name] for name in names})


def _purpose(row: Mapping[Any, Any]) -> str:
    if row["check_kind"] is not None:
        return CHECKS
    match row["state"]:
        case AttemptState.SUCCEEDED.value:
            return ANSWERS
        case AttemptState.WEAK.value:
            return REJECTED
        case _:
            return FAILED


def _singles(
    policy: Policy,
    prices: PriceBook,
    standings: Sequence[Standing],
    total: Money,
    intents: Mapping[str, Money],
    now: datetime,
) -> list[Single]:
    """Every paid model of the policy's chains as the only one, at the answers' tokens and its list price."""
    known = {(each.intent, each.model): each for each in standings}
    models = dict.fromkeys(
        model
        for model in (policy.flagship, *(model for plan in policy.plans.values() for model in plan.chain))
        if policy.models[model].provider != "local"
    )
    found = []
    for model in models:
        if model == policy.flagship:
            found.append(Single(model, total.flagship_usd, None, True))
            continue
        rates = prices.rates(model, "interactive", now)
        if rates is None:
            continue
        verdicts = [
            weigh(known[intent, model], known.get((intent, policy.flagship))) if (intent, model) in known else None
            for intent in intents
        ]
        qualities = [verdict.quality for verdict in verdicts if verdict is not None and verdict.quality is not None]
        worst = (
            min(qualities, key=lambda each: each.lower_bound())
            if qualities and len(qualities) == len(verdicts)
            else None
        )
        passes = (
            policy.quality is not None
            and bool(verdicts)
            and all(verdict is not None and verdict.keeps(policy.quality) for verdict in verdicts)
        )
        found.append(Single(model, rates.cost(total.usage), worst, passes))
    return sorted(found, key=lambda single: single.usd)


def saved(usd: Decimal, instead_of: Decimal) -> float | None:
    """Share saved; negative when more was spent; None when there is nothing to compare with."""
    return round(float(1 - usd / instead_of), 6) if instead_of else None


def as_dict(report: Savings) -> dict[str, Any]:
    """For programs; money is text with all its digits."""
    best = report.best_single

    def figures(money: Money) -> dict[str, Any]:
        return {
            "usd": exact(money.usd),
            "spent": {purpose: exact(usd) for purpose, usd in money.spent.items()},
            "calls": money.calls,
            "flagship_usd": exact(money.flagship_usd),
            "saved_against_flagship": saved(money.usd, money.flagship_usd),
            "cache_write_usd": exact(money.cache_write_usd),
            "estimated_usd": exact(money.estimated_usd),
            "unpriced": money.unpriced,
            "cpu_s": round(money.cpu_s, 3),
        }

    def quality(intent: str) -> dict[str, Any]:
        jobs, graded = report.served.get(intent, (0, Sums(0, 0.0, 0.0)))
        found = report.quality(intent)
        return {
            "answered": jobs,
            "graded": graded.labels,
            "mean_score": None if not graded.labels else round(graded.score / graded.labels, 4),
            "ratio_to_flagship": None if found is None else round(found.ratio, 4),
            "lower_bound": None if found is None else round(found.lower_bound(), 4),
        }

    return {
        "since_s": report.since_s,
        "flagship": report.flagship,
        "target": report.target,
        **figures(report.total),
        "best_single": {
            "model": best.model,
            "usd": exact(best.usd),
            "saved": saved(report.total.usd, best.usd),
        },
        "singles": [
            {
                "model": single.model,
                "usd": exact(single.usd),
                "lower_bound": None if single.worst is None else round(single.worst.lower_bound(), 4),
                "shown": single.passes,
            }
            for single in report.singles
        ],
        "by_model": {model: exact(usd) for model, usd in report.by_model.items()},
        "by_intent": {
            intent: figures(money) | {"quality": quality(intent)} for intent, money in report.intents.items()
        },
    }


def text(report: Savings) -> str:
    """For people."""
    total, best = report.total, report.best_single
    days = report.since_s / 86400
    against_flagship = _share(saved(total.usd, total.flagship_usd))
    against_best = _share(saved(total.usd, best.usd))
    lines = [
        f"Spent {_usd(total.usd)} USD on the jobs of {days:g} days.",
        f"  The same answers on {report.flagship}: {_usd(total.flagship_usd)}, {against_flagship} saved.",
        f"  On {best.model}, the best single model shown to keep the quality: {_usd(best.usd)}, {against_best} saved.",
        "",
        f"  {'':<16} {'USD':>12} {'answers':>12} {'rejected':>12} {'failed':>12} {'checks':>12} {'flagship':>12} {'saved':>8}",
    ]
    for intent, money in (*report.intents.items(), ("all", total)):
        parts = " ".join(f"{_usd(money.spent[purpose]):>12}" for purpose in PURPOSES)
        lines.append(
            f"  {intent:<16} {_usd(money.usd):>12} {parts} {_usd(money.flagship_usd):>12}"
            f" {_share(saved(money.usd, money.flagship_usd)):>8}"
        )
    lines += ["", "  Quality of the answers that were served, relative to the flagship:"]
    lines += [f"  {intent:<16} {_quality_line(report, intent)}" for intent in report.intents]
    notes = []
    if total.cache_write_usd:
        notes.append(f"{_usd(total.cache_write_usd)} USD of it wrote prompt caches (at today's list price)")
    if total.estimated_usd:
        notes.append(f"{_usd(total.estimated_usd)} USD of it is estimated: calls whose bill nobody knows")
    if total.cpu_s:
        notes.append(f"our own models took {total.cpu_s:,.1f} s of CPU besides, which is no part of it")
    if total.unpriced:
        notes.append(f"{total.unpriced} calls have no known price and are missing")
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


def _quality_line(report: Savings, intent: str) -> str:
    jobs, graded = report.served.get(intent, (0, Sums(0, 0.0, 0.0)))
    found = report.quality(intent)
    if not graded.labels:
        return f"not known: none of {jobs} answers is graded (Client.feedback, waybill policy shadow)"
    score = f"mean score {graded.score / graded.labels:.3f} of {graded.labels} graded among {jobs}"
    if found is None:
        return f"{score}; no grade of the flagship to compare with"
    return f"{found.ratio:.3f}, at least {max(0.0, found.lower_bound()):.3f}; {score}"


def _usd(usd: Decimal) -> str:
    return f"{usd:.6f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


# --- the picture ------------------------------------------------------------------------------------------------------

_COLOURS = {ANSWERS: "#1f6fb2", REJECTED: "#d98e04", FAILED: "#c0392b", CHECKS: "#7d5ba6"}
_FONT = 'font-size="12" font-family="system-ui, sans-serif"'
_WIDTH, _LEFT, _BAR, _GAP = 760, 200, 26, 14


def draw(report: Savings) -> str:
    """An SVG: what was spent on what, beside the flagship and the best single model."""
    best = report.best_single
    others = [(report.flagship, report.total.flagship_usd)]
    if best.model != report.flagship:
        others.append((f"{best.model} alone", best.usd))
    most = max([report.total.usd, *(usd for _, usd in others), Decimal("1e-12")])
    scale = (_WIDTH - _LEFT - 110) / float(most)
    height = 110 + (1 + len(others)) * (_BAR + _GAP)
    title = f"Spent over {report.since_s / 86400:g} days, and the same answers elsewhere"
    label = f'aria-label="{escape(title, quote=True)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" {_FONT} {label}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="15" fill="#1b2530">{escape(title)}</text>',
    ]
    y, x = 46.0, float(_LEFT)
    parts.append(_label("this fleet", y))
    for purpose in PURPOSES:
        width = float(report.total.spent[purpose]) * scale
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{_COLOURS[purpose]}">'
            f"<title>{purpose}: {_usd(report.total.spent[purpose])} USD</title></rect>"
        )
        x += width
    parts.append(_figure(x, y, f"{_usd(report.total.usd)} USD"))
    for name, usd in others:
        y += _BAR + _GAP
        width = float(usd) * scale
        share = _share(saved(report.total.usd, usd))
        parts.append(_label(name, y))
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="#b8c2cc"/>')
        parts.append(_figure(min(_LEFT + width, _WIDTH - 110.0), y, f"{_usd(usd)} ({share})"))
    y += _BAR + _GAP + 12
    for number, purpose in enumerate(PURPOSES):
        at = 16 + number * 180
        parts.append(f'<rect x="{at}" y="{y}" width="12" height="12" fill="{_COLOURS[purpose]}"/>')
        parts.append(f'<text x="{at + 18}" y="{y + 10}" fill="#51606f">{purpose}</text>')
    return "\n".join([*parts, "</svg>"])


def page(report: Savings) -> str:
    """The picture and the figures as one page that needs nothing else."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Savings</title>\n'
        '<body style="margin:2rem;max-width:60rem;font-family:system-ui,sans-serif">\n'
        f"{draw(report)}\n<pre>{escape(text(report))}</pre>\n</body></html>\n"
    )


def _label(name: str, y: float) -> str:
    return f'<text x="{_LEFT - 10}" y="{y + 17}" text-anchor="end" fill="#1b2530">{escape(name)}</text>'


def _figure(x: float, y: float, label: str) -> str:
    return f'<text x="{x + 8:.1f}" y="{y + 17}" fill="#51606f">{escape(label)}</text>'
