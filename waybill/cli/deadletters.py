"""`waybill dlq`: dead letters, and on request everything that ended without an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from waybill.cli.desk import Desk, at_desk, find_job, refuse

if TYPE_CHECKING:
    from waybill.ledger.engine import Row


@click.group()
def dlq() -> None:
    """Jobs that were put aside (dead: lost their worker three times) or, with --failed, that ended without an answer."""


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--all", "everything", is_flag=True, help="All of them.")(command)
    command = click.option("--code", default=None, help="All with this error code.")(command)
    command = click.option("--failed", is_flag=True, help="Failed jobs, too, not only dead ones.")(command)
    return click.argument("jobs", nargs=-1)(command)


def _states(failed: bool) -> list[str]:
    return ["dead", "failed"] if failed else ["dead"]


@dlq.command("list")
@click.option("--failed", is_flag=True, help="Failed jobs, too.")
@click.option("--code", default=None, help="Only this error code.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def dlq_list(failed: bool, code: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, newest first, and how many there are of each error code."""
    from waybill.ledger import oncall

    async def work(desk: Desk) -> tuple[Sequence[Row], Sequence[Row]]:
        states = _states(failed)
        rows = await desk.ask(oncall.DEAD_LETTERS, {"states": states, "code": code, "ids": None, "limit": limit})
        return rows, await desk.ask(oncall.DEAD_BY_CODE, {"states": states})

    rows, totals = at_desk(work)
    if as_json:
        click.echo(json.dumps({"jobs": [dict(r) for r in rows], "totals": [dict(r) for r in totals]}, default=str))
        return
    for row in rows:
        click.echo(
            f"{row['id']}  {row['finished_at']:%Y-%m-%d %H:%M:%S}  {row['state']:<6}  {row['intent']:<16} {row['tenant']:<12}"
            f" [{row['error_code']}] {(row['error'] or '')[:100]}"
        )
    for total in totals:
        click.echo(f"{total['jobs']:>8}  {total['state']} with {total['code']}")
    if not totals:
        click.echo("no dead letters" if not failed else "no dead or failed jobs")


@dlq.command("show")
@click.argument("job")
@click.option("--payload", is_flag=True, help="What was asked, too (may be private).")
def dlq_show(job: str, payload: bool) -> None:
    """Tell the story of a dead letter."""
    from waybill.ledger.story import read_story, tell

    async def work(desk: Desk) -> str:
        try:
            story = await read_story(desk.ledger, job)
        except LookupError as exc:
            refuse(str(exc.args[0]))
        if story["job"]["state"] not in ("dead", "failed"):
            refuse(
                f"job {story['job']['id']} is {story['job']['state']}, not a dead letter; `waybill why` tells any job"
            )
        text = tell(story)
        if payload:
            rows = await desk.ask("select body from payloads where job_id = %(id)s", {"id": story["job"]["id"]})
            text += f"\n  asked        {rows[0]['body'] if rows else '(dropped)'}"
        return text

    click.echo(at_desk(work))


@dlq.command("requeue")
@_chosen
@click.option("--deadline", type=click.FloatRange(min=0.001), default=None, help="Seconds from now; default: none.")
def dlq_requeue(
    jobs: tuple[str, ...], failed: bool, code: str | None, everything: bool, deadline: float | None
) -> None:
    """Give dead letters another chance: budget and losses start anew, history and cost stay."""
    from waybill.ledger.requeue import REQUEUE

    async def work(desk: Desk) -> int:
        from waybill.broker import dispatch_doorbells

        done = 0
        for ids in await _choose(desk, jobs, failed=failed or bool(jobs), code=code, everything=everything):
            rows = await desk.ask(REQUEUE, {"ids": ids, "run_id": None, "deadline_s": deadline})
            await desk.ring(dispatch_doorbells([row["id"] for row in rows]))
            done += len(rows)
        return done

    click.echo(f"{at_desk(work)} jobs queued again")


@dlq.command("drop")
@_chosen
@click.option("--yes", is_flag=True, help="Really: what was asked is deleted.")
def dlq_drop(jobs: tuple[str, ...], failed: bool, code: str | None, everything: bool, yes: bool) -> None:
    """Delete what dead letters asked for and take them off the list. Their history and cost stay on the ledger."""
    from waybill.ledger import oncall

    async def work(desk: Desk) -> tuple[int, int]:
        chosen = await _choose(desk, jobs, failed=failed or bool(jobs), code=code, everything=everything)
        found = sum(map(len, chosen))
        if not yes:
            return found, 0
        return found, sum([len(await desk.ask(oncall.DROP, {"ids": ids})) for ids in chosen])

    found, dropped = at_desk(work)
    if not yes:
        refuse(f"this would delete the requests of {found} jobs for good; say --yes to do it")
    click.echo(f"{dropped} jobs dropped")


async def _choose(
    desk: Desk, jobs: tuple[str, ...], *, failed: bool, code: str | None, everything: bool
) -> list[list[str]]:
    """Ids of the chosen dead letters, in chunks. Refuses names that are none, and a choice of nothing or of two ways."""
    from waybill.ledger import oncall

    if sum([bool(jobs), code is not None, everything]) != 1:
        refuse("say which: job ids, --code CODE or --all")
    states = _states(failed)
    named = [await find_job(desk, job) for job in jobs]
    rows = await desk.ask(
        oncall.DEAD_LETTERS, {"states": states, "code": code, "ids": named or None, "limit": 1_000_000}
    )
    found = [row["id"] for row in rows]
    missing = [job_id for job_id in named if job_id not in found]
    if missing:
        refuse(f"job {missing[0]} is no dead letter (it is going on, succeeded, was cancelled or dropped)")
    if code is not None and not found:
        refuse(f"no {' or '.join(states)} job has the error code {code!r}; `waybill dlq list` counts them by code")
    return [found[start : start + 5000] for start in range(0, len(found), 5000)]
