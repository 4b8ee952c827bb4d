"""Graded outcomes of one's own ledger -> a plan per intent: the cheapest model whose quality is shown, else the safer one.

Three plans: the flagship directly; a cheap model alone (its answers have no check that could fail); a cascade (cheap,
check, escalate). A model is taken when the lower confidence bound of its quality ratio to the flagship meets the target
and its *measured* cost, escalations included, is below that of the safer plan. The bound and its margin are those of
`waybill policy evaluate` (bounds.py), made cautious for few labels: one answer more is counted that the flagship had
right and the model wrong, so that agreement on a handful of items shows nothing.

Only models of the intent's chain in the policy file are ever chosen. Until an intent has `ENOUGH` grades the file's own
order holds: a person has judged, and no outcome contradicts.

A job may state a quality of its own (`Job.quality`); then that is the target of its plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any, Final

from policies.evaluate.bounds import Quality
from policies.localgate import USUAL_TARGET
from policies.policyfile import Plan, Policy

ENOUGH: Final = 30
"""Grades of a model from which on outcomes decide about an intent."""
_STEPS: Final = 200


@dataclass(frozen=True, slots=True)
class Sums:
    """Scores of a model, and where the flagship has a score on the same item, of both together.

    Attributes:
        labels: Items graded.
        score, squares: Sum of the scores and of their squares.
        pairs: Items on which the flagship has a grade too.
        flagship, flagship_squares: Of the flagship's scores on those.
        difference, difference_squares: Of model minus flagship on those.
        product: Of (model minus flagship) times flagship.
    """

    labels: int
    score: float
    squares: float
    pairs: int = 0
    flagship: float = 0.0
    flagship_squares: float = 0.0
    difference: float = 0.0
    difference_squares: float = 0.0
    product: float = 0.0

    def times(self, factor: float) -> Sums:
        """The sums of so many times the items at hand, all like them."""
        values = {each.name: getattr(self, each.name) * factor for each in fields(self)}
        return Sums(**values | {name: round(values[name]) for name in ("labels", "pairs")})


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one model for one intent.

    Attributes:
        sums: Its grades.
        jobs: Jobs it was called for.
        usd: What its calls cost together, failed ones included; None where one had no price and nothing is known.
        checked: Answers that came back whole and were looked at by the check.
        weak: Those among them that failed it.
    """

    intent: str
    model: str
    sums: Sums
    jobs: int = 0
    usd: Decimal | None = None
    checked: int = 0
    weak: int = 0

    @property
    def usd_per_job(self) -> float | None:
        """Measured cost of asking this model about one job."""
        return None if self.usd is None or not self.jobs else float(self.usd) / self.jobs

    @property
    def weak_share(self) -> float:
        """Share of its answers that the check sent on to the next model."""
        return self.weak / self.checked if self.checked else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the grades say of one model beside the flagship.

    Attributes:
        standing: The figures.
        flagship: The flagship's own grades; None without any.
        quality: Ratio to the flagship's score; None without grades of both.
    """

    standing: Standing
    flagship: Sums | None
    quality: Quality | None

    def keeps(self, target: float) -> bool:
        """Whether the lower bound meets a target, on grades enough."""
        return self.standing.sums.labels >= ENOUGH and self.quality is not None and self.quality.lower_bound() >= target

    def lacks(self, target: float) -> int | None:
        """More labels like those at hand that would show a target; None when a hundred times as many would not."""
        model, flagship = self.standing.sums, self.flagship
        for step in range(_STEPS + 1):
            more = math.pow(100, step / _STEPS)
            quality = cautious_quality(model.times(more), None if flagship is None else flagship.times(more))
            if quality is not None and quality.lower_bound() >= target:
                return math.ceil(model.labels * (more - 1))
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan of one intent and where it comes from.

    Attributes:
        plan: As routing uses it.
        kind: `declared` (the file's order), `flagship`, `cheap` or `cascade`.
        verdicts: Of the chain's models that have grades.
        target: What it had to keep; None = nothing.
        shown: The model that outcomes show to keep it at less than the safer plan's cost; None = there is none.
    """

    plan: Plan
    kind: str
    verdicts: tuple[Verdict, ...]
    target: float | None
    shown: str | None = None

    @property
    def shortfall(self) -> str | None:
        """One line when the target is not shown for any cheaper model: what lacks how many labels; else None."""
        if self.kind != "flagship" or self.target is None:
            return None
        return _shortfall(self.plan.intent, self.verdicts, self.target)


def standing(row: Mapping[Any, Any]) -> Standing:
    """A row of the ledger's standings (waybill/ledger/grades.py)."""
    return Standing(row["intent"], row["model"], sums(row), row["jobs"], row["usd"], row["checked"], row["weak"])


def sums(row: Mapping[Any, Any]) -> Sums:
    """The sums in a row, whose columns have the names of the fields."""
    return Sums(
        labels=row["labels"],
        pairs=row["pairs"],
        **{each.name: float(row[each.name]) for each in fields(Sums) if each.name not in ("labels", "pairs")},
    )


def learn(policy: Policy, standings: Sequence[Standing]) -> tuple[Policy, Mapping[str, Choice]]:
    """The policy with the plans that the outcomes allow, and why, by intent.

    Intents without a quality target keep the file's order.
    """
    known = by_name(standings)
    choices = {intent: choose(policy, plan, known) for intent, plan in policy.plans.items()}
    return replace(policy, plans={intent: choice.plan for intent, choice in choices.items()}), choices


def by_name(standings: Sequence[Standing]) -> Mapping[tuple[str, str], Standing]:
    """Standings by intent and model."""
    return {(each.intent, each.model): each for each in standings}


def choose(policy: Policy, plan: Plan, known: Mapping[tuple[str, str], Standing], own: float | None = None) -> Choice:
    """The plan of one intent.

    Args:
        plan: As the policy file has it.
        known: What the ledger knows, by intent and model.
        own: The quality that a job states for itself; None = the intent's target holds, or the policy's.
    """
    usual = plan.quality if plan.quality is not None else policy.quality
    if own is None:
        return _choose(policy, plan, known, usual, "target")
    if own > (usual or USUAL_TARGET):
        plan = _without_local(plan, policy)
    choice = _choose(policy, plan, known, own, "the job's target")
    if choice.kind != "declared":
        return choice
    reason = f"{plan.reason}; too few outcomes to choose by for the job's own {own:g}: the file's order holds"
    return replace(choice, plan=replace(choice.plan, reason=reason))


def _choose(
    policy: Policy, plan: Plan, known: Mapping[tuple[str, str], Standing], target: float | None, whose: str
) -> Choice:
    paid = [model for model in plan.chain if policy.models[model].provider != "local"]
    flagship = known.get((plan.intent, policy.flagship))
    verdicts = tuple(
        weigh(known[plan.intent, model], flagship)
        for model in paid
        if model != policy.flagship and (plan.intent, model) in known
    )
    if target is None or len(paid) < 2 or not any(each.standing.sums.labels >= ENOUGH for each in verdicts):
        return Choice(plan, "declared", verdicts, target)
    safe = policy.flagship if policy.flagship in paid else paid[-1]
    best = _cheapest([each for each in verdicts if each.keeps(target)], known.get((plan.intent, safe)))
    if best is None:
        reason = f"no cheaper model is shown to keep {target:g} of {policy.flagship} ({whose}): the safer plan"
        return Choice(_begin_with(plan, safe, policy, reason), "flagship", verdicts, target)
    model, quality = best.standing.model, best.quality
    assert quality is not None
    kind = "cascade" if best.standing.weak_share > 0 else "cheap"
    reason = (
        f"{model} keeps {quality.ratio:.3f} of {policy.flagship}, at least {max(0.0, quality.lower_bound()):.3f}"
        f" ({whose} {target:g}, {quality.labels} labels)"
    )
    return Choice(_begin_with(plan, model, policy, reason), kind, verdicts, target, model)


def _without_local(plan: Plan, policy: Policy) -> Plan:
    """The plan for more than the gate of local answers is opened for; unchanged where there is nobody else."""
    paid = tuple(model for model in plan.chain if policy.models[model].provider != "local")
    return replace(plan, chain=paid) if paid else plan


def weigh(standing: Standing, flagship: Standing | None) -> Verdict:
    """Compare a model with the flagship: on the items that both answered, or where those say less, by their means."""
    graded = None if flagship is None else flagship.sums
    return Verdict(standing, graded, cautious_quality(standing.sums, graded))


def cautious_quality(model: Sums, flagship: Sums | None) -> Quality | None:
    """The quality ratio from sums, with one lost item added; None when nothing can be compared.

    Paired items need several times fewer labels than two means: of both estimates the surer one counts.
    """
    estimates = [_paired(model)]
    if flagship is not None:
        estimates.append(_unpaired(model, flagship))
    found = [each for each in estimates if each is not None]
    return min(found, key=lambda each: each.standard_error, default=None)


def _paired(sums: Sums) -> Quality | None:
    n = sums.pairs + 1
    flagship, difference = sums.flagship + 1, sums.difference - 1
    if sums.pairs < 1 or sums.flagship <= 0:
        return None
    shift = difference / flagship
    # Residuals d - shift * f have mean 0; their squares by the sums (delta method of a ratio of means).
    squares = (
        (sums.difference_squares + 1)
        - 2 * shift * (sums.product - 1)
        + shift**2 * (sums.flagship_squares + 1)
    )  # fmt: skip
    error = math.sqrt(max(0.0, squares) / (n - 1)) / (flagship / n) / math.sqrt(n)
    return Quality(1 + shift, error, sums.pairs)


def _unpaired(model: Sums, flagship: Sums) -> Quality | None:
    if model.labels < 1 or flagship.labels < 2 or flagship.score <= 0:
        return None
    n, k = model.labels + 1, flagship.labels
    mean, base = model.score / n, flagship.score / k
    spread = max(0.0, model.squares / n - mean**2) / n
    # One flagship answer less than all right: a flagship that was never wrong on k items is not known to be perfect.
    base_spread = max(flagship.squares / k - base**2, (1 / (k + 1)) * (1 - 1 / (k + 1))) / k
    ratio = mean / base
    return Quality(ratio, math.sqrt(spread + ratio**2 * base_spread) / base, model.labels)


def _cheapest(passing: Sequence[Verdict], safe: Standing | None) -> Verdict | None:
    """The passing model with the lowest measured cost, if that is below the safer plan's; in the chain's order where
    nothing was measured."""
    most = None if safe is None else safe.usd_per_job

    def cost(verdict: Verdict) -> float | None:
        own = verdict.standing.usd_per_job
        return None if own is None else own + verdict.standing.weak_share * (most or 0.0)

    priced = [(usd, verdict) for verdict in passing if (usd := cost(verdict)) is not None]
    if priced:
        usd, best = min(priced, key=lambda pair: pair[0])
        return best if most is None or usd < most else None
    return passing[0] if passing else None


def _begin_with(plan: Plan, model: str, policy: Policy, reason: str) -> Plan:
    """The chain from `model` on, weaker models last; local models keep their place: their gate decides on each answer."""
    local = [each for each in plan.chain if policy.models[each].provider == "local"]
    paid = [each for each in plan.chain if each not in local]
    at = paid.index(model)
    return replace(plan, chain=(*local, *paid[at:], *paid[:at]), reason=reason)


def _shortfall(intent: str, verdicts: Sequence[Verdict], target: float) -> str:
    parts = []
    for verdict in verdicts:
        model, labels = verdict.standing.model, verdict.standing.sums.labels
        if verdict.quality is None:
            parts.append(f"{model} has {labels} labels and the flagship none to compare with")
        elif (lacks := verdict.lacks(target)) is None:
            parts.append(f"{model} has {labels} labels and keeps only {verdict.quality.ratio:.3f}")
        elif labels < ENOUGH:
            parts.append(f"{model} has {labels} labels and lacks about {max(lacks, ENOUGH - labels)}")
        elif lacks:
            parts.append(f"{model} has {labels} labels and lacks about {lacks}")
        else:
            parts.append(f"{model} meets it, but costs as much as the safer plan")
    return f"intent {intent}: no cheaper plan is shown to keep {target:g}: {'; '.join(parts)}"
