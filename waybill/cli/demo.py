"""`waybill demo`: the whole system once, on documents that this project wrote, and what it cost."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from waybill.cli.durations import DURATION
from waybill.cli.up import SANDBOX_NOTE, Fleet, describe, ledger_and_redis, plan_fleet, wants_sandbox
from waybill.settings import Settings
from waybill.supervisor import Supervisor

if TYPE_CHECKING:
    from producers.demo import DemoOutcome
    from producers.progress import Progress


INTERRUPTED = 130


@click.command()
@click.option("--once", is_flag=True, help="Stop when the sample documents are done, instead of staying up.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures as JSON.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for the answers.")
@click.option("--sandbox/--no-sandbox", default=None, help="Answer from a sandbox. Default: only without API keys.")
@click.option(
    "--deadline",
    "deadline_s",
    type=DURATION,
    metavar="TIME",
    help="1h, 24h, ...: with time, half-price lanes are used.",
)
@click.option("--verbose", is_flag=True, help="Show what the processes write.")
def demo(
    once: bool,
    report: Path | None,
    output: Path | None,
    sandbox: bool | None,
    deadline_s: float | None,
    verbose: bool,
) -> None:
    """Run everything once on about sixty sample documents over four intents, and show what it cost and why.

    Without API keys the answers come from a sandbox provider on this machine, and the costs are play money.

    Exit codes: 0 all is well, 1 ledger and sandbox's bill differ, 2 some documents have no answer, 130 interrupted.
    """
    settings = Settings.from_env()
    from producers.demo import ANSWERS

    played = wants_sandbox(settings, sandbox)
    output = output or settings.state_dir / "demo"
    with ledger_and_redis(settings) as (database_url, redis_url):
        arguments = ["--answers", str(ANSWERS), "--latency", "model:0.2"] if played else None
        fleet = plan_fleet(settings, database_url, redis_url, sandbox_args=arguments, flower=not once, gateway=not once)
        exit_code = asyncio.run(_demo(fleet, output, report, once=once, verbose=verbose, deadline_s=deadline_s))
    sys.exit(exit_code)


async def _demo(
    fleet: Fleet, output: Path, report: Path | None, *, once: bool, verbose: bool, deadline_s: float | None
) -> int:
    say(describe(fleet) if not once else _short(fleet))
    log_path = output.parent / "demo-processes.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.devnull if verbose else log_path, "w", encoding="utf-8") as log:  # noqa: ASYNC230, PTH123  # once, before the loop is busy
        async with Supervisor(fleet.programs, out=sys.stderr if verbose else log) as supervisor:
            say("starting the fleet (its lines are in demo-processes.log of the state folder)" if not verbose else "")
            stop = asyncio.Event()
            told = asyncio.ensure_future(supervisor.until_told())
            told.add_done_callback(lambda _: stop.set())
            outcome = await _carry(fleet, output, deadline_s, stop)
            if stop.is_set():
                await told  # raises where a program that must not end has ended
                say(f"interrupted; answers so far: {output}/")
                return INTERRUPTED
            figures = outcome.summary | {"sandbox": fleet.sandbox_url is not None}
            if fleet.sandbox_url is not None:
                figures |= {"note": SANDBOX_NOTE, "bill_usd": await asyncio.to_thread(_bill, fleet.sandbox_url)}
            if report is not None:
                text = json.dumps(figures, indent=2, default=str) + "\n"
                await asyncio.to_thread(report.write_text, text, encoding="utf-8")
            exit_code = _show(figures, outcome, output)
            if not once:
                say(describe(fleet))
                say("The fleet stays up. Ctrl-C stops it. Try: ./run why JOB with a _job id of the answers.")
                await told
            told.cancel()
    return exit_code


async def _carry(fleet: Fleet, output: Path, deadline_s: float | None, stop: asyncio.Event) -> DemoOutcome:
    from producers.demo import run_demo
    from waybill.client import AsyncClient
    from workers.runtime import load_policy

    client = AsyncClient(fleet.env["WAYBILL_DATABASE_URL"], fleet.env["WAYBILL_REDIS_URL"])
    async with client:
        return await run_demo(
            client,
            output,
            policy=load_policy(Settings.from_env({**os.environ, **fleet.env})),
            progress=_progress,
            deadline_s=deadline_s,
            stop=stop,
        )


def _progress(intent: str) -> Progress:
    from producers.progress import for_stream

    say(f"{intent} ...")
    return for_stream(sys.stderr)


def _bill(sandbox_url: str) -> str:
    """What the sandbox says it charged, in USD, exactly."""
    with urllib.request.urlopen(f"{sandbox_url}/bill", timeout=10) as answer:  # noqa: S310  # our own loopback address
        return str(json.load(answer)["total_usd"])


def _show(figures: dict[str, Any], outcome: DemoOutcome, output: Path) -> int:
    from producers import report as reports

    reports.show(outcome.summary)
    say(f"answers: {output}/")
    if figures["sandbox"]:
        agrees = Decimal(str(figures["usd"])) == Decimal(figures["bill_usd"])
        say(
            f"ledger ${figures['usd']}, sandbox's own bill ${figures['bill_usd']}: {'equal' if agrees else 'THEY DIFFER'}"
        )
        say(SANDBOX_NOTE)
        if not agrees:
            return 1
    return 0 if figures["succeeded"] == figures["jobs"] else 2


def _short(fleet: Fleet) -> str:
    lines = [SANDBOX_NOTE] if fleet.sandbox_url else []
    lines += [f"off: {provider} ({why})" for provider, why in fleet.off.items()]
    return "\n".join(lines)


def say(text: str) -> None:
    """A line for the screen, if there is anything to say."""
    if text:
        click.echo(text)
