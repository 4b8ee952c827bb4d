"""The `waybill` command. A verb's code is loaded when it is called, so that `waybill --help` and errors are quick."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from waybill.errors import WaybillError

# verb -> (module, attribute, one line for --help)
_VERBS = {
    "demo": ("waybill.cli.demo", "demo", "Run everything once on sample documents and show what it cost."),
    "up": ("waybill.cli.up", "up", "Run all processes of the fleet on this machine."),
    "run": ("waybill.cli.run", "run", "Carry a folder or table of documents through the fleet."),
    "compare": (
        "waybill.cli.compare",
        "compare",
        "Ask several models about a sample before a run: price and agreement.",
    ),
    "savings": ("waybill.cli.savings", "savings", "Show what was saved, against whom and at what quality."),
    "estimate": ("waybill.cli.estimate", "estimate", "Say what a run would cost, and what haste costs."),
    "why": ("waybill.cli.why", "why", "Tell the whole story of a job from the ledger."),
    "status": ("waybill.cli.status", "status", "Show lanes, intents and the latest changes of route on one screen."),
    "drain": ("waybill.cli.oncall", "drain", "Send nothing more to a provider."),
    "pause": ("waybill.cli.oncall", "pause", "Start no more calls for a run or an intent."),
    "resume": ("waybill.cli.oncall", "resume", "Undo a drain or a pause."),
    "cancel": ("waybill.cli.oncall", "cancel", "Cancel a job or a whole run."),
    "dlq": ("waybill.cli.deadletters", "dlq", "List, show, requeue or drop dead letters."),
    "weight": ("waybill.cli.oncall", "weight", "Give a tenant more turns than others."),
    "keys": ("waybill.cli.tenants", "keys", "Make, list and revoke keys to the gateway."),
    "tenants": ("waybill.cli.tenants", "tenants", "Add, list, suspend and reopen tenants."),
    "budgets": ("waybill.cli.tenants", "budgets", "Say what tenants, keys and runs may spend."),
    "worker": ("waybill.cli.processes", "worker", "Run one worker process for the given queues."),
    "dispatcher": ("waybill.cli.processes", "dispatcher", "Run one dispatcher process."),
    "control": ("waybill.cli.processes", "control", "Run the fleet's housekeeping."),
    "gateway": ("waybill.cli.gateway", "gateway", "Serve the OpenAI and Anthropic APIs in front of the fleet."),
    "metrics": ("waybill.cli.metrics", "metrics", "Serve the fleet's metrics to Prometheus, or print them."),
    "bill": ("waybill.cli.metrics", "bill", "Note what a provider says a day cost."),
    "config": ("waybill.cli.config", "config", "Show and check the configuration, secrets masked."),
    "retention": ("waybill.cli.retention", "retention", "Say how long text is kept."),
    "erase": ("waybill.cli.retention", "erase", "Delete everything that a tenant asked and was answered."),
    "flower": ("waybill.cli.processes", "flower", "Run Flower, closed and read-only."),
    "probe": ("waybill.cli.probe", "probe", "Say whether the process beside this one lives, or is ready."),
    "sandbox": ("sandbox.command", "sandbox", "Run a model provider on loopback that needs no keys."),
    "db": ("waybill.cli.db", "db", "Look after the ledger's schema."),
    "policy": ("waybill.cli.policy", "policy", "Check and measure routing policies."),
}
_NEEDS_CHECKOUT = ("workers", "producers", "policies", "sandbox", "migrations")


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, attribute, _ = _VERBS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="waybill")
def cli() -> None:
    """Carries LLM jobs the cheapest way that meets a quality and a deadline, and writes down what each cost."""


def main() -> None:
    """Entry point: our own errors are one line on stderr and exit code 1; everything else is a bug and shows itself."""
    try:
        cli()
    except WaybillError as exc:
        click.echo(f"waybill: {exc}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in _NEEDS_CHECKOUT:
            raise
        click.echo(
            "waybill: this verb runs a part of the fleet, which is not in the installed library;"
            " run it from a checkout or the image",
            err=True,
        )
        sys.exit(1)
