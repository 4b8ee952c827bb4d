"""`waybill status`: one screen for the person on call. Reads the ledger, and Redis where it answers; changes nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import click

from waybill.cli.desk import Desk, at_desk
from waybill.overview import WINDOW_S, read_hints, read_overview
from waybill.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: one object a line.")
@click.option("--watch", is_flag=True, help="Again and again until Ctrl-C.")
@click.option("--every", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds, with --watch.")
def status(as_json: bool, watch: bool, every: float) -> None:
    """Lanes (breaker, headroom, in flight, 429s), intents (waiting, oldest, p95, USD/h), provider batches, latest changes of route."""

    async def work(desk: Desk) -> None:
        while True:
            found = await read_status(desk)
            if watch and not as_json:
                click.clear()
            click.echo(json.dumps(found, default=_plain) if as_json else screen(found))
            if not watch:
                return
            await asyncio.sleep(every)

    try:
        at_desk(work)
    except KeyboardInterrupt:
        return


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


async def read_status(desk: Desk) -> dict[str, Any]:
    """What the screen shows (`overview.read_overview`), with the policy where the checkout is there to read it."""
    async with desk.redis() as redis:
        hints = await read_hints(redis)
    return await read_overview(desk.ask, hints, _policy(desk.settings))


def _policy(settings: Settings) -> Any:
    try:
        from workers.runtime import load_policy
    except ModuleNotFoundError:
        return None
    return load_policy(settings)


def screen(found: Mapping[str, Any]) -> str:
    """The status as text."""
    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC; rates over the last {WINDOW_S / 60:.0f} minutes"
    ]
    if found["redis"]:
        lines.append(f"! {found['redis']}: breakers and headroom are unknown")
    for hold in found["holds"]:
        what = "drained" if hold["kind"] == "provider" else "paused"
        since = f" since {hold['since']:%H:%M:%S}" if hold["since"] else ""
        lines.append(f"! {hold['kind']} {hold['name']} is {what}{since}: {hold['reason']}")
    lines += [
        f"! account {account['account']} is refused ({account['state']}): {account['reason']}"
        for account in found["accounts"]
    ]
    if found["dead"]:
        lines.append(f"! {found['dead']} dead letters; see `waybill dlq list`")
    lines += ["", *_table(
        ("lane", "state", "headroom", "in flight", "answered", "429", "failed", "median s"),
        [
            (
                lane["lane"],
                lane["state"],
                "-" if lane["headroom"] is None else f"{lane['headroom']:.0%}",
                lane["in_flight"],
                lane["answered"],
                lane["throttled"],
                lane["failed"],
                _seconds(lane["median_s"]),
            )
            for lane in found["lanes"]
        ],
    )]  # fmt: skip
    lines += [
        f"  {lane['lane']}: {lane['reason']}"
        for lane in found["lanes"]
        if lane["state"] not in ("closed", "drained", "unknown")
    ]
    lines += ["", *_table(
        ("intent", "queued", "on the way", "parked", "running", "oldest s", "done", "failed", "p95 s", "USD/h"),
        [
            (
                row["intent"],
                row["queued"],
                row["routed"],
                row["parked"],
                row["running"],
                _seconds(row["oldest_s"]),
                row["succeeded"],
                row["failed"],
                _seconds(row["p95_s"]),
                f"{row['usd_per_hour']:.4f}",
            )
            for row in found["intents"]
        ],
    )]  # fmt: skip
    if found["batches"]:
        lines += ["", *_table(
            ("batch", "provider", "state", "rows", "open", "hours"),
            [
                (
                    batch["provider_id"] or batch["id"],
                    f"{batch['provider']} {batch['model']}".rstrip(),
                    f"{batch['state']}, cancelled" if batch["is_cancelled"] else batch["state"],
                    batch["rows"],
                    batch["open_rows"],
                    f"{batch['age_s'] / 3600:.1f}",
                )
                for batch in found["batches"]
            ],
        )]  # fmt: skip
        lines += [
            f"  {batch['provider_id'] or batch['id']}: {batch['error']}" for batch in found["batches"] if batch["error"]
        ]
    if found["route_changes"]:
        lines += ["", "latest changes of route"]
    lines += [
        f"  {change['at']:%H:%M:%S} {change['job_id'][:13]} {change['outcome']}: {change['reason'][:100]}"
        for change in found["route_changes"]
    ]
    return "\n".join(lines)


def _seconds(value: Any) -> str:
    return "-" if value is None else f"{float(value):.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns, the first to the left, the others to the right."""
    texts = [head, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[n]) for row in texts) for n in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    ]
