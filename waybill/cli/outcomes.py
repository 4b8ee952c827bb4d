"""`waybill policy outcomes|import|shadow|replay`: what one's own ledger knows of models, and what other policies would do with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from waybill.cli.savings import PERIOD, write
from waybill.cli.why import ledger_url
from waybill.errors import ConfigError
from waybill.settings import Settings

if TYPE_CHECKING:
    from policies.policyfile import Policy
    from policies.quality import Choice, Verdict
    from producers.replay import Replayed
    from producers.shadowing import Shadowed
    from waybill.ledger.engine import Ledger

T = TypeVar("T")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW = click.Path(dir_okay=False, path_type=Path)


def with_ledger(work: Callable[[Ledger], Awaitable[T]]) -> T:
    """Carry out work on the ledger of this machine's settings."""

    async def run() -> T:
        from waybill.ledger.engine import Ledger

        with ledger_url(Settings.from_env()) as url:
            ledger = Ledger(url)
            try:
                return await work(ledger)
            finally:
                await ledger.close()

    return asyncio.run(run())


@click.command()
@click.option("--json", "json_path", type=_NEW, help="Write all figures here.")
def outcomes(json_path: Path | None) -> None:
    """Show quality and measured cost by intent and model, the plans chosen from them, and which labels are lacking."""
    from policies.quality import learn, standing
    from producers.policy import load_policy
    from waybill.ledger import cascades, grades, heads

    policy = load_policy(Settings.from_env())

    async def read(ledger: Ledger) -> tuple[list[Any], list[Any], dict[int, str], list[Any]]:
        params = {"flagship": policy.flagship, "since_s": grades.SINCE_S}
        standings = [standing(row) for row in await ledger.fetch(grades.STANDINGS, params)]
        learned = list(await ledger.fetch(cascades.LIST))
        audits = {row["id"]: await _audits(ledger, row, policy.flagship) for row in learned}
        return standings, learned, audits, list(await ledger.fetch(heads.LIST))

    standings, learned, audits, fitted = with_ledger(read)
    for row in fitted:
        click.echo(
            f"  head {row['version']} of {row['intent']} (prompt version {row['prompt']}): fitted {row['made_at']:%Y-%m-%d %H:%M} on"
            f" {row['labels']} labels of paid models"
        )
    for row in learned:
        click.echo(
            f"  cascade {row['id']} of {row['intent']}: {' > '.join(row['chain'])}, fitted {row['made_at']:%Y-%m-%d %H:%M} on"
            f" {row['labels']} items ({row['source']}) for {row['target']:g}: at least {row['quality']:.4f}, saves {row['saving']:.1%}"
        )
        click.echo(f"    {audits[row['id']]}")
    if not standings:
        raise ConfigError(
            "this ledger has no grades; they come from Client.feedback, `waybill policy shadow` and `waybill policy import`"
        )
    _, choices = learn(policy, standings)
    click.echo(
        f"  {'intent':<16} {'model':<24} {'labels':>7} {'score':>7} {'ratio':>7} {'at least':>9} {'USD/job':>11} {'escalated':>10}"
    )
    for each in standings:
        verdict = next((v for v in _verdicts(choices, each.intent) if v.standing.model == each.model), None)
        quality = None if verdict is None else verdict.quality
        click.echo(
            f"  {each.intent:<16} {each.model:<24} {each.sums.labels:>7} {each.sums.score / each.sums.labels:>7.3f}"
            f" {_number(None if quality is None else quality.ratio):>7}"
            f" {_number(None if quality is None else quality.lower_bound()):>9}"
            f" {'-' if each.usd_per_job is None else f'{each.usd_per_job:.6f}':>11} {each.weak_share:>10.1%}"
        )
    for intent, choice in choices.items():
        click.echo(f"  {intent}: {choice.kind}, {' > '.join(choice.plan.chain)}")
        if choice.shortfall is not None:
            click.echo(f"    {choice.shortfall}")
    if json_path is not None:
        write(json_path, json.dumps(_outcomes_dict(policy, standings, choices), indent=2) + "\n")


async def _audits(ledger: Ledger, row: Any, flagship: str) -> str:
    """What audits say of a cascade."""
    from policies.drift import LEAST, RECORDS, audited
    from waybill.ledger import checking

    if row["drift"] is not None:
        return f"drifted, {flagship} answers in its place until another one is fitted: {row['drift']}"
    scores = await ledger.fetch(checking.AUDITS, {"cascades": [row["id"]], "most": RECORDS})
    [counts] = await ledger.fetch(checking.SHARE, {**checking.OF_LATE, "cascade": row["id"], "flagship": flagship})
    found = audited(
        [(each["score"], each["flagship"]) for each in scores],
        kept=counts["kept"] / counts["jobs"] if counts["jobs"] else 1.0,
        target=row["target"],
    )
    return f"{len(scores)} audits, {LEAST} say something" if found is None else found.describe()


def _verdicts(choices: Any, intent: str) -> tuple[Verdict, ...]:
    choice = choices.get(intent)
    return () if choice is None else choice.verdicts


def _number(value: float | None) -> str:
    return "-" if value is None else f"{max(0.0, value):.3f}"


def _outcomes_dict(policy: Policy, standings: list[Any], choices: Any) -> dict[str, Any]:
    def row(each: Any) -> dict[str, Any]:
        verdict = next((v for v in _verdicts(choices, each.intent) if v.standing.model == each.model), None)
        quality = None if verdict is None else verdict.quality
        target = None if verdict is None else choices[each.intent].target
        return {
            "intent": each.intent,
            "model": each.model,
            "labels": each.sums.labels,
            "pairs": each.sums.pairs,
            "score": each.sums.score / each.sums.labels,
            "ratio": None if quality is None else quality.ratio,
            "lower_bound": None if quality is None else quality.lower_bound(),
            "lacks": None if verdict is None or target is None else verdict.lacks(target),
            "usd_per_job": each.usd_per_job,
            "weak_share": each.weak_share,
        }

    def plan(choice: Choice) -> dict[str, Any]:
        return {
            "kind": choice.kind,
            "chain": list(choice.plan.chain),
            "reason": choice.plan.reason,
            "shortfall": choice.shortfall,
        }

    return {
        "policy": policy.version,
        "target": policy.quality,
        "standings": [row(each) for each in standings],
        "plans": {intent: plan(choice) for intent, choice in choices.items()},
    }


@click.command("import")
@click.argument("path", type=_FILE)
@click.option("--tenant", default="default", show_default=True, help="Whose evaluation it is.")
@click.option(
    "--model", "renamed", multiple=True, metavar="OLD=NEW", help="A model's name here, where the file has another."
)
def import_(path: Path, tenant: str, renamed: tuple[str, ...]) -> None:
    """Take an evaluation made elsewhere into the ledger's grades.

    PATH is a Parquet file with one row per item and model: item_id, intent, model, score (0..1), cost_usd. The same file again
    replaces its grades.
    """
    from policies.evaluate.outcomes import BadOutcomes, gradable
    from waybill.cli.policy import BadInput, read_columns, renames
    from waybill.ledger import grades

    try:
        rows = gradable(read_columns(path), name=path.name)
    except BadOutcomes as exc:
        raise BadInput(str(exc)) from None
    names = renames(renamed, [row.model for row in rows], path.name)

    async def put(ledger: Ledger) -> None:
        for start in range(0, len(rows), 5000):
            part = rows[start : start + 5000]
            await ledger.fetch(
                grades.IMPORT,
                {
                    "tenant": tenant,
                    "items": [f"{path.stem}/{row.item}" for row in part],
                    "intents": [row.intent for row in part],
                    "models": [names.get(row.model, row.model) for row in part],
                    "scores": [row.score for row in part],
                    "usd": [None if row.usd is None else Decimal(str(row.usd)) for row in part],
                },
            )

    with_ledger(put)
    models = sorted({names.get(row.model, row.model) for row in rows})
    click.echo(f"{len(rows):,} grades of {len({row.item for row in rows}):,} items: {', '.join(models)}")


@click.command()
@click.option("--policy", "policy_path", required=True, type=_FILE, help="The policy file to try.")
@click.option("--since", "since_s", type=PERIOD, default="30d", show_default=True, help="Jobs that ended since then.")
@click.option("--tenant", help="Only this tenant's jobs.")
@click.option("--json", "json_path", type=_NEW, help="Write all figures here.")
def replay(policy_path: Path, since_s: float, tenant: str | None, json_path: Path | None) -> None:
    """Estimate what another policy would have cost, missed and been worth on this ledger's jobs. No calls are made.

    Doubly robust: rests on the jobs whose first model would have been the same, and on the means of the model that would have been
    chosen. With `explore` in the policy file other models have been tried at random, and the intervals get narrow.
    """
    from policies.policyfile import parse
    from producers import replay as replaying

    try:
        policy = parse(policy_path.read_text(encoding="utf-8"), policy_path.name)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--policy {policy_path}: cannot be read: {exc}") from None

    async def read(ledger: Ledger) -> Replayed:
        return await replaying.read_replay(ledger, policy, since_s=since_s, tenant=tenant)

    found = with_ledger(read)
    click.echo(replaying.text(found))
    if json_path is not None:
        write(json_path, json.dumps(replaying.as_dict(found), indent=2) + "\n")


@click.command()
@click.option("--model", help="Who answers again. Default: the flagship, beside whoever answered.")
@click.option("--sample", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Jobs at most.")
@click.option(
    "--budget", "budget_usd", type=Decimal, required=True, metavar="USD", help="What it may cost, judges included."
)
@click.option("--intent", help="Only jobs of this intent.")
@click.option("--tenant", help="Only this tenant's jobs.")
@click.option("--since", "since_s", type=PERIOD, default="30d", show_default=True, help="Jobs that ended since then.")
def shadow(
    model: str | None, sample: int, budget_usd: Decimal, intent: str | None, tenant: str | None, since_s: float
) -> None:
    """Ask a sample of finished jobs again of another model, compare, and keep the grades: what plans are learned from.

    Needs a running fleet. Jobs that must stay on local models are left out. Free texts are scored by the flagship.
    """
    if not budget_usd.is_finite() or budget_usd <= 0:
        raise ConfigError(f"--budget {budget_usd}: must be USD above 0, such as 0.50")
    found = asyncio.run(_shadow(model, sample, budget_usd, intent, tenant, since_s))
    share = "-" if found.agreement is None else f"{found.agreement:.3f}"
    click.echo(
        f"{found.asked} jobs asked again: {found.compared} compared, {found.judged} judged, {found.failed} without a grade;"
        f" mean score beside the flagship {share}"
    )
    click.echo(
        f"spent {found.usd:.6f} USD (reckoned {found.expected_usd:.6f}); {found.left_out} jobs were beyond the budget"
    )


async def _shadow(
    model: str | None, sample: int, budget_usd: Decimal, intent: str | None, tenant: str | None, since_s: float
) -> Shadowed:
    from producers.policy import load_policy
    from producers.shadowing import shadow as run
    from waybill.cli.session import running_services
    from waybill.client import AsyncClient

    settings = Settings.from_env()
    policy = load_policy(settings)
    services = running_services(settings)
    if services is None:
        raise ConfigError("no fleet runs here that could be asked; start one with `waybill up`")
    database_url, redis_url = services
    broker_url = settings.broker_url.get_secret_value() if settings.broker_url else redis_url
    async with AsyncClient(database_url, redis_url, broker_url=broker_url) as client:
        return await run(
            client, policy, model=model or policy.flagship, sample=sample, budget_usd=budget_usd, intent=intent,
            tenant=tenant, since_s=since_s,
        )  # fmt: skip
