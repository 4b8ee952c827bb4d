"""`waybill probe live|ready`: what Kubernetes runs in a pod; exit code 0 or 1 by the age of the heartbeat file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from waybill.probe import LIVE_WITHIN_S, judge


@click.command()
@click.argument("question", type=click.Choice(["live", "ready"]))
@click.option(
    "--file",
    "path",
    envvar="WAYBILL_HEARTBEAT_FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The heartbeat file. Default: WAYBILL_HEARTBEAT_FILE.",
)
@click.option(
    "--within",
    "within_s",
    type=click.FloatRange(min=0, min_open=True),
    default=LIVE_WITHIN_S,
    show_default=True,
    help="Seconds.",
)
def probe(question: str, path: Path, within_s: float) -> None:
    """Say whether the process beside this one lives, or is ready for work. Asks neither broker nor ledger."""
    # The same clock as the file's time stamps: both are of this machine.
    verdict = judge(path, ready=question == "ready", now=time.time(), within_s=within_s)
    click.echo(verdict.reason)
    sys.exit(0 if verdict.passed else 1)
