"""`waybill policy fit`: learn from graded answers when a cheap answer of an intent is good enough, and put that in force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from waybill.cli.savings import PERIOD
from waybill.errors import ConfigError
from waybill.settings import Settings

if TYPE_CHECKING:
    from waybill.ledger.engine import Ledger

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--intent", required=True, help="Whose cascade it is.")
@click.option(
    "--target", type=click.FloatRange(0.5, 1), help="Share of the flagship's quality to keep. Default: the policy's."
)
@click.option("--since", "since_s", type=PERIOD, default="30d", show_default=True, help="Jobs that ended since then.")
@click.option("--tenant", help="Only this tenant's jobs.")
@click.option(
    "--from", "path", type=_FILE, help="Fit on this file (Parquet, long format) instead of the ledger's jobs."
)
@click.option(
    "--model", "renamed", multiple=True, metavar="OLD=NEW", help="A model's name here, where the file has another."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of folds and trees.")
@click.option("--off", is_flag=True, help="End the cascade in force instead.")
def fit(
    *,
    intent: str,
    target: float | None,
    since_s: float,
    tenant: str | None,
    path: Path | None,
    renamed: tuple[str, ...],
    seed: int,
    off: bool,
) -> None:
    """Learn when a cheap answer is kept, when another model is asked and when the flagship, and put it in force.

    Takes the jobs of an intent that the flagship and cheaper models of its chain have answered, each answer graded: `waybill policy
    shadow` makes such jobs. Nothing is put in force unless the target is shown to be kept. The one in force before is ended; jobs
    under way go on as they began.
    """
    from policies.evaluate.outcomes import BadOutcomes, pair_outcomes
    from producers import fitting
    from producers.policy import load_policy
    from waybill.cli.outcomes import with_ledger
    from waybill.cli.policy import BadInput, read_columns, renames
    from waybill.ledger import cascades

    if off:
        ended = with_ledger(lambda ledger: ledger.fetch(cascades.END, {"intent": intent}))
        if not ended:
            raise BadInput(f"--off: no cascade of {intent} is in force")
        click.echo(f"cascade {ended[0]['id']} of {intent} has ended; the policy file's chain holds within 10 s")
        return
    policy = load_policy(Settings.from_env())
    tenants: list[str] = []
    if path is None:
        rows = with_ledger(lambda ledger: _read(ledger, intent, since_s, tenant))
        columns, name = fitting.columns_of(rows, intent), f"jobs of {intent}"
        tenants = sorted({row["tenant"] for row in rows})
    else:
        columns, name = read_columns(path), path.name
        names = renames(renamed, columns.get("model", []), path.name)
        columns["model"] = [names.get(model, model) for model in columns.get("model", [])]
    plan = policy.plans.get(intent)
    wanted = target or (plan.quality if plan is not None else None) or policy.quality or 0.99
    try:
        pool = fitting.pool_of(intent, policy, columns["model"])
        train = pair_outcomes(columns, flagship=policy.flagship, pool=pool, name=name, tagged=False)
        fitted = fitting.fit(train, target=wanted, seed=seed, name=name)
    except (BadOutcomes, ConfigError) as exc:
        raise BadInput(str(exc)) from None
    if train.left_out:
        click.echo(f"{name}: {train.left_out} items left out, some model has no graded answer there", err=True)

    async def put(ledger: Ledger) -> Any:
        return await ledger.fetch(
            cascades.PUT,
            {
                "intent": intent,
                "chain": list(fitted.chain),
                "target": wanted,
                "labels": fitted.labels,
                "quality": fitted.quality.lower_bound(),
                "saving": fitted.saving,
                "tenants": tenants,
                "source": "ledger" if path is None else path.name,
                "model": fitted.content,
            },
        )

    [row] = with_ledger(put)
    click.echo(
        f"cascade {row['id']} of {intent}: {' > '.join(fitted.chain)}; {fitted.labels} items, {len(fitted.content) / 1e3:,.0f} kB\n"
        f"  out of fold it kept {fitted.quality.ratio:.4f} of {policy.flagship}, at least {fitted.quality.lower_bound():.4f},"
        f" and saved {fitted.saving:.1%}\n"
        "  in force within 10 s"
    )


async def _read(ledger: Ledger, intent: str, since_s: float, tenant: str | None) -> Any:
    from producers.fitting import MOST
    from waybill.ledger import cascades

    asked = {"intent": intent, "since_s": since_s, "tenant": tenant, "most": MOST}
    return await ledger.fetch(cascades.ANSWERED, asked)
