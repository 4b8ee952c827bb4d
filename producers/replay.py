"""`waybill policy replay`: reads how jobs were decided, asks another policy file the same questions, and adds up. No calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from policies.policyfile import Policy
from policies.pricing import PriceBook
from policies.replay import Estimate, Interval, Played, replay
from policies.routing import Request, Route, Snapshot, route
from waybill.contract import Usage
from waybill.errors import ConfigError
from waybill.ledger import replays

if TYPE_CHECKING:
    from waybill.ledger.engine import Ledger

MOST_JOBS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Replayed:
    """What both policies come to on the same jobs.

    Attributes:
        jobs: Jobs replayed.
        left_out: Jobs whose decision says too little (made by an older version), or which cost what nobody knows.
        unroutable: Jobs that the other policy would refuse, with the reason of the first.
        moved: Jobs that would begin with another model.
        before, after: The ledger's own policy, and the other one.
    """

    jobs: int
    left_out: int
    unroutable: int
    refusal: str | None
    moved: int
    before: Estimate
    after: Estimate


async def read_replay(ledger: Ledger, policy: Policy, *, since_s: float, tenant: str | None = None) -> Replayed:
    """Replay the jobs that ended within a period.

    Raises:
        ConfigError: There is nothing to replay.
        LedgerUnavailable: Postgres does not answer.
    """
    rows = await ledger.fetch(replays.DECIDED, {"since_s": since_s, "tenant": tenant, "most": MOST_JOBS})
    return run_replay(rows, policy, now=datetime.now(UTC))


def run_replay(rows: Sequence[Mapping[Any, Any]], policy: Policy, *, now: datetime) -> Replayed:
    """Rows of replays.DECIDED under another policy."""
    prices, snapshot = PriceBook(policy), Snapshot(off={}, now=now)
    played: list[Played] = []
    choices: list[str] = []
    list_usd: list[float | None] = []
    left_out = unroutable = 0
    refusal = None
    for row in rows:
        detail = row["detail"] or {}
        if "features" not in detail or not detail.get("candidates") or row["unpriced"]:
            left_out += 1
            continue
        found = route(_request(row, detail["features"]), policy, snapshot, prices)
        if not isinstance(found, Route):
            unroutable += 1
            refusal = refusal or found.reason
            continue
        score = None if row["score"] is None else float(row["score"])
        late = None if row["late"] is None else float(row["late"])
        played.append(
            Played(row["intent"], detail["candidates"][0], detail["propensity"], float(row["usd"]), late, score)
        )
        head = found.candidates[0]
        choices.append(head.model)
        usage = Usage(row["input_tokens"] or 0, row["output_tokens"] or 0)
        price = prices.cost(head.model, "local" if head.provider == "local" else "interactive", usage, now)
        list_usd.append(None if price is None else float(price))
    if not played:
        raise ConfigError("no job of this period can be replayed; give a longer --since, or look at another ledger")
    own = [job.model for job in played]
    return Replayed(
        jobs=len(played),
        left_out=left_out,
        unroutable=unroutable,
        refusal=refusal,
        moved=sum(choice != model for choice, model in zip(choices, own, strict=True)),
        before=replay(played, own, [job.usd for job in played]),
        after=replay(played, choices, list_usd),
    )


def _request(row: Mapping[Any, Any], features: Mapping[str, Any]) -> Request:
    return Request(
        intent=row["intent"],
        payload_bytes=features["bytes"],
        model=features["model"],
        local_only=features["local_only"],
        needs=tuple(features["needs"]),
        max_output_tokens=features["max_output_tokens"],
        slack_s=features["slack_s"],
        priority=features["priority"],
    )


def as_dict(found: Replayed) -> dict[str, Any]:
    """For programs."""

    def interval(each: Interval | None) -> dict[str, Any] | None:
        return None if each is None else {"mean": each.mean, "low": each.low, "high": each.high, "jobs": each.jobs}

    def estimate(each: Estimate) -> dict[str, Any]:
        return {
            "usd_per_job": interval(each.usd),
            "late": interval(each.late),
            "quality": interval(each.score),
            "unknown": [{"intent": i, "model": m, "jobs": n} for (i, m), n in each.unknown.items()],
            "ungraded": each.ungraded,
        }

    return {
        "jobs": found.jobs,
        "left_out": found.left_out,
        "unroutable": found.unroutable,
        "moved": found.moved,
        "before": estimate(found.before),
        "after": estimate(found.after),
    }


def text(found: Replayed) -> str:
    """For people."""
    lines = [
        f"{found.jobs:,} jobs replayed, {found.moved:,} would begin with another model. Means with 95 % intervals:",
        f"  {'':<22} {'as it was':>34} {'under this policy':>34}",
        _line("USD per 1,000 jobs", found.before.usd, found.after.usd, 1000, ".4f"),
        _line("share past deadline", found.before.late, found.after.late, 1, ".3f"),
        _line("quality (grades)", found.before.score, found.after.score, 1, ".3f"),
    ]
    for (intent, model), jobs in found.after.unknown.items():
        lines.append(
            f"  {jobs:,} jobs: no job of {intent} began with {model}; taken at its list price, deadline and quality unknown"
        )
    if found.after.ungraded:
        lines.append(f"  {found.after.ungraded:,} jobs are not in the quality: no answer of their model is graded")
    if found.unroutable:
        lines.append(f"  {found.unroutable:,} jobs could not be done under this policy: {found.refusal}")
    if found.left_out:
        lines.append(f"  {found.left_out:,} jobs left out: their decision or cost is not fully known")
    return "\n".join(lines)


def _line(name: str, before: Interval | None, after: Interval | None, times: int, form: str) -> str:
    def shown(each: Interval | None) -> str:
        if each is None:
            return "not known"
        low, high = max(0.0, each.low), each.high
        return f"{each.mean * times:{form}} ({low * times:{form}} .. {high * times:{form}})"

    return f"  {name:<22} {shown(before):>34} {shown(after):>34}"
