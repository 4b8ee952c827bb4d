"""What runs came to: figures from the ledger -> a summary (report.json) and a table.

Money in a summary is text with all its digits, never a float. `saved_ratio` compares everything that was spent, failed
attempts included, with the flagship's price for the answers only: it can be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from waybill.client import AsyncClient
from waybill.ledger import reports

if TYPE_CHECKING:
    from rich.console import RenderableType

    from waybill.ledger.engine import Row


_SUMMED = (
    "answered", "attempts", "input_tokens", "output_tokens", "usd", "estimated_usd", "flagship_usd", "unpriced",
    "routing_usd", "local_usd", "lane_usd", "prompt_cache_usd", "response_cache_usd", "unused_usd",
)  # fmt: skip
# What saved something, in the order in which it is taken off the flagship's price; the last one is what was lost again.
_STACK = {
    "routing": "a cheaper model than {flagship}",
    "local": "our own model",
    "lane": "a cheaper service than the interactive one",
    "prompt_cache": "prompts read from the provider's cache",
    "response_cache": "the same question, answered before",
    "unused": "calls whose answer was not used",
}


@dataclass(slots=True)
class Sums:
    """Figures of one lane for one intent, or of many together."""

    answered: int = 0
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: Decimal = Decimal(0)
    estimated_usd: Decimal = Decimal(0)
    flagship_usd: Decimal = Decimal(0)
    unpriced: int = 0
    routing_usd: Decimal = Decimal(0)
    local_usd: Decimal = Decimal(0)
    lane_usd: Decimal = Decimal(0)
    prompt_cache_usd: Decimal = Decimal(0)
    response_cache_usd: Decimal = Decimal(0)
    unused_usd: Decimal = Decimal(0)

    def add(self, other: Row | Sums) -> None:
        """Add a row of LANE_TOTALS, or other sums."""
        for name in _SUMMED:
            value = getattr(other, name) if isinstance(other, Sums) else other[name]
            setattr(self, name, getattr(self, name) + value)


@dataclass(slots=True)
class Totals:
    """Figures that can be added up chunk by chunk, so that a report needs no list of jobs.

    Attributes:
        lanes: By (intent, model, service).
        states: Number of jobs by (intent, state).
        first_s: First submission, seconds since 1970.
        last_s: Last end.
    """

    lanes: dict[tuple[str, str, str], Sums] = field(default_factory=dict)
    states: dict[tuple[str, str], int] = field(default_factory=dict)
    first_s: float | None = None
    last_s: float | None = None

    def add(self, lanes: Sequence[Row], jobs: Sequence[Row]) -> None:
        """Add the rows of LANE_TOTALS and JOB_TOTALS."""
        for row in lanes:
            self.lanes.setdefault((row["intent"], row["model"], row["service"]), Sums()).add(row)
        for row in jobs:
            key = (row["intent"], row["state"])
            self.states[key] = self.states.get(key, 0) + row["jobs"]
            self.first_s = row["first_s"] if self.first_s is None else min(self.first_s, row["first_s"])
            if row["last_s"] is not None:
                self.last_s = row["last_s"] if self.last_s is None else max(self.last_s, row["last_s"])

    def merge(self, other: Totals) -> None:
        """Add the figures of other jobs."""
        for lane, sums in other.lanes.items():
            self.lanes.setdefault(lane, Sums()).add(sums)
        for key, count in other.states.items():
            self.states[key] = self.states.get(key, 0) + count
        self.first_s = min((s for s in (self.first_s, other.first_s) if s is not None), default=None)
        self.last_s = max((s for s in (self.last_s, other.last_s) if s is not None), default=None)


async def read_totals(client: AsyncClient, *, job_ids: Sequence[str] = (), run_ids: Sequence[str] = ()) -> Totals:
    """The figures of these jobs and of all jobs of these runs.

    Raises:
        LedgerUnavailable: Postgres does not answer.
    """
    chosen = {"ids": list(job_ids), "runs": list(run_ids)}
    totals = Totals()
    totals.add(
        await client.ledger.fetch(reports.LANE_TOTALS, chosen), await client.ledger.fetch(reports.JOB_TOTALS, chosen)
    )
    return totals


async def summarize(
    client: AsyncClient, run_ids: Sequence[str], *, seconds: float | None = None, flagship: str | None = None
) -> dict[str, Any]:
    """The summary of one or several runs together, as report.json has it.

    Args:
        client: For the ledger.
        run_ids: The runs.
        seconds: How long they took; None = from the first submission to the last end, by the ledger.
        flagship: The model that savings are reported against, for the table's heading.
    """
    return summary(await read_totals(client, run_ids=run_ids), run_ids, seconds=seconds, flagship=flagship)


def summary(
    totals: Totals, run_ids: Sequence[str], *, seconds: float | None = None, flagship: str | None = None
) -> dict[str, Any]:
    """Figures -> the contents of report.json.

    Keys `by_model` and `by_intent` hold the same sums by model and by intent. A model's `jobs` are the answers it gave,
    so that they add up to `succeeded`; its `attempts`, tokens and `usd` count every call that was made to it.
    """
    if seconds is None:
        seconds = 0.0 if totals.first_s is None or totals.last_s is None else max(0.0, totals.last_s - totals.first_s)
    everything = Sums()
    by_model: dict[str, Sums] = {}
    by_intent: dict[str, dict[str, Sums]] = {}
    services: dict[str, Sums] = {}
    for (intent, model, service), sums in sorted(totals.lanes.items()):
        everything.add(sums)
        for place in (
            by_model.setdefault(model, Sums()),
            by_intent.setdefault(intent, {}).setdefault(model, Sums()),
            services.setdefault(service, Sums()),
        ):
            place.add(sums)
    by_state: dict[str, int] = {}
    for (_, state), count in totals.states.items():
        by_state[state] = by_state.get(state, 0) + count
    finished = sum(by_state.get(state, 0) for state in ("succeeded", "failed", "dead", "cancelled"))
    return {
        "jobs": sum(by_state.values()),
        "succeeded": by_state.get("succeeded", 0),
        "failed": finished - by_state.get("succeeded", 0),
        "unfinished": sum(by_state.values()) - finished,
        **_money(everything),
        "attempts": everything.attempts,
        "unpriced": everything.unpriced,
        "estimated_usd": exact(everything.estimated_usd),
        "flagship": flagship,
        "savings": stack(everything),
        "by_model": {model: _figures(sums) for model, sums in by_model.items()},
        "by_intent": {
            intent: {
                "jobs": sum(n for (i, _), n in totals.states.items() if i == intent),
                "succeeded": totals.states.get((intent, "succeeded"), 0),
                **_without_jobs(_total(by_intent.get(intent, {}))),
                "by_model": {model: _figures(sums) for model, sums in by_intent.get(intent, {}).items()},
            }
            for intent in sorted({intent for intent, _ in totals.states})
        },
        "services": {service: _figures(sums) for service, sums in services.items()},
        "seconds": round(seconds, 3),
        "jobs_per_s": round(finished / seconds, 3) if seconds > 0 else None,
        "run_id": run_ids[0] if len(run_ids) == 1 else list(run_ids),
    }


def stack(sums: Sums) -> dict[str, Any]:
    """What saved how much of the flagship's price, in USD and as a share of it; `unused` is negative.

    The parts add up to `flagship_usd - usd` and the shares to `saved_ratio`, but for calls without a price.
    """
    parts = {name: getattr(sums, f"{name}_usd") * (-1 if name == "unused" else 1) for name in _STACK}
    return {
        name: {
            "usd": exact(usd),
            "ratio": round(float(usd / sums.flagship_usd), 6) if sums.flagship_usd else None,
        }
        for name, usd in parts.items()
    }


def _total(parts: Mapping[str, Sums]) -> Sums:
    total = Sums()
    for sums in parts.values():
        total.add(sums)
    return total


def _money(sums: Sums) -> dict[str, Any]:
    return {
        "usd": exact(sums.usd),
        "flagship_usd": exact(sums.flagship_usd),
        "saved_ratio": round(float(1 - sums.usd / sums.flagship_usd), 6) if sums.flagship_usd else None,
    }


def _figures(sums: Sums) -> dict[str, Any]:
    return {"jobs": sums.answered, **_without_jobs(sums)}


def _without_jobs(sums: Sums) -> dict[str, Any]:
    return {
        "attempts": sums.attempts,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        **_money(sums),
        "unpriced": sums.unpriced,
    }


def exact(usd: Decimal) -> str:
    """All digits and no more: no exponent, no trailing zeros."""
    text = format(usd, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def show(report: Mapping[str, Any]) -> None:
    """Print the table on stdout; what is no terminal (a file, CI) gets room for whole names."""
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 112)
    console.print(table(report, with_tokens=console.width >= 112))
    console.print(savings_table(report))


def table(report: Mapping[str, Any], *, with_tokens: bool = True) -> RenderableType:
    """A summary as a table: a line per intent and model, and what it all came to.

    Args:
        report: As `summary` gives it.
        with_tokens: Whether there is room (112 columns) for the two columns of tokens.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    flagship = report.get("flagship") or "the flagship"
    columns = Table(
        title=f"What it cost, failed attempts included, and the same tokens on {flagship}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("Intent", "Model"):
        columns.add_column(heading, no_wrap=True)
    tokens = ("Tokens in", "Tokens out") if with_tokens else ()
    for heading in ("Jobs", "Calls", *tokens, "USD", "Flagship", "Saved"):
        columns.add_column(heading, justify="right", no_wrap=True)
    for intent, figures in report["by_intent"].items():
        for model, part in figures["by_model"].items():
            columns.add_row(intent, model, *_cells(part, with_tokens))
        unanswered = figures["jobs"] - figures["succeeded"]
        if unanswered:
            columns.add_row(intent, "[dim]no answer[/dim]", f"{unanswered:,}", *[""] * (6 if with_tokens else 4))
        columns.add_section()
    everything = {
        "jobs": report["jobs"],
        "attempts": report["attempts"],
        **{key: sum(part[key] for part in report["by_model"].values()) for key in ("input_tokens", "output_tokens")},
        **{key: report[key] for key in ("usd", "flagship_usd", "saved_ratio")},
    }
    columns.add_row("[bold]all[/bold]", "", *_cells(everything, with_tokens), style="bold")
    columns.caption = _caption(report)
    columns.caption_justify = "left"
    return columns


def savings_table(report: Mapping[str, Any]) -> RenderableType:
    """The savings stack: each part that saved or cost something, and what is left of the flagship's price."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    flagship = report.get("flagship") or "the flagship"
    columns = Table(
        title="What saved it, one after the other", title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        pad_edge=False,
    )  # fmt: skip
    columns.add_column("By", no_wrap=True)
    for heading in ("USD", "Share"):
        columns.add_column(heading, justify="right", no_wrap=True)
    columns.add_row(
        f"all answers on {flagship}, interactive, nothing cached", f"{Decimal(report['flagship_usd']):.6f}", ""
    )
    for name, words in _STACK.items():
        part = report["savings"][name]
        if Decimal(part["usd"]):
            share = "" if part["ratio"] is None else f"{-part['ratio']:.1%}"
            columns.add_row(words.format(flagship=flagship), f"{-Decimal(part['usd']):.6f}", share)
    saved = report["saved_ratio"]
    paid = "" if saved is None else f"{1 - saved:.1%}"
    columns.add_row("paid", f"{Decimal(report['usd']):.6f}", paid, style="bold")
    return columns


def _cells(part: Mapping[str, Any], with_tokens: bool) -> list[str]:
    return [
        f"{part['jobs']:,}",
        f"{part['attempts']:,}",
        *([f"{part['input_tokens']:,}", f"{part['output_tokens']:,}"] if with_tokens else []),
        f"{Decimal(part['usd']):.6f}",
        f"{Decimal(part['flagship_usd']):.6f}",
        "" if part["saved_ratio"] is None else f"{part['saved_ratio']:.1%}",
    ]


def _caption(report: Mapping[str, Any]) -> str:
    notes = [
        f"{report['succeeded']:,} of {report['jobs']:,} jobs answered in {report['seconds']:.1f} s"
        + (f" ({report['jobs_per_s']:.1f} jobs/s)" if report["jobs_per_s"] else "")
    ]
    if report["unpriced"]:
        notes.append(f"{report['unpriced']:,} calls have no known price and are missing in USD")
    if Decimal(report["estimated_usd"]):
        notes.append(f"{report['estimated_usd']} USD of it is estimated: calls whose bill nobody knows")
    return "; ".join(notes)
