"""`waybill savings`: what was saved, against whom, and at what quality."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from waybill.cli.why import ledger_url
from waybill.errors import ConfigError
from waybill.settings import Settings

if TYPE_CHECKING:
    from producers.savings import Savings

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Period(click.ParamType["float"]):
    """`30d`, `12h`, `90m`: a length of time in seconds."""

    name = "period"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value).strip())
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no period; write a number and s, m, h, d or w, such as 30d")
        return float(found[1]) * _UNITS[found[2]]


PERIOD = Period()


@click.command()
@click.option("--since", "since_s", type=PERIOD, default="30d", show_default=True, help="Jobs submitted since then.")
@click.option("--tenant", help="Only this tenant's jobs.")
@click.option("--run", "run_id", type=click.UUID, help="Only the jobs of this run.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option(
    "--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture (.html, .svg)."
)
def savings(since_s: float, tenant: str | None, run_id: object, json_path: Path | None, plot_path: Path | None) -> None:
    """Show what was spent against the flagship and the best single model, with the quality beside it.

    Everything counts as spent: rejected answers (local ones too), failed and lost calls, shadows, judges, cache writes.
    """
    from producers import savings as reports

    if plot_path is not None and plot_path.suffix.lower() not in (".html", ".htm", ".svg"):
        raise ConfigError(f"--plot {plot_path.name}: is drawn as a page or a vector graphic; name it .html or .svg")
    report = asyncio.run(_read(since_s, tenant, None if run_id is None else str(run_id)))
    if not report.intents:
        raise ConfigError("no calls in this period; give a longer --since, or look at another ledger")
    click.echo(reports.text(report))
    if json_path is not None:
        write(json_path, json.dumps(reports.as_dict(report), indent=2) + "\n")
    if plot_path is not None:
        write(plot_path, reports.draw(report) + "\n" if plot_path.suffix.lower() == ".svg" else reports.page(report))


async def _read(since_s: float, tenant: str | None, run_id: str | None) -> Savings:
    from producers.policy import load_policy
    from producers.savings import read_savings
    from waybill.ledger.engine import Ledger

    settings = Settings.from_env()
    policy = load_policy(settings)
    with ledger_url(settings) as url:
        ledger = Ledger(url)
        try:
            return await read_savings(ledger, policy, since_s=since_s, tenant=tenant, run_id=run_id)
        finally:
            await ledger.close()


def write(path: Path, content: str) -> None:
    """Write a file or say in one line why not.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc.strerror or exc}; name a file in a folder that exists") from None
