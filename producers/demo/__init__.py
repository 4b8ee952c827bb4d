"""The demo: four runs over about sixty documents that this project wrote, with the same code as `waybill run`.

`demo.toml` lists the runs; `ANSWERS` is the answer book for a sandbox that stands in for the providers.
"""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.policyfile import Policy
from producers import batch, report
from producers.progress import Progress
from waybill.client import AsyncClient
from waybill.contract import Priority

HERE: Final = Path(__file__).parent
MANIFEST: Final = HERE / "demo.toml"
ANSWERS: Final = HERE / str(tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["answers"])


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """What the demo came to.

    Attributes:
        run_ids: One run for each intent.
        outcomes: As `waybill run` has them, in the same order.
        summary: All four together, as report.json has it; `producers.report.table` shows it.
    """

    run_ids: tuple[str, ...]
    outcomes: tuple[batch.BatchOutcome, ...]
    summary: dict[str, Any]


def demo_specs(
    output_dir: Path, policy: Policy, *, fresh: bool = True, deadline_s: float | None = None
) -> list[batch.BatchSpec]:
    """The four runs, with their outputs in `output_dir`.

    Args:
        output_dir: A folder that exists.
        policy: The policy that the fleet follows.
        fresh: Do everything anew each time, so that the demo has something to show and the sandbox's bill starts with it.
        deadline_s: Of every row; with time the half-price lanes are used.
    """
    manifest = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    return [
        batch.BatchSpec(
            input=HERE / run["input"],
            output=output_dir / run["output"],
            intent=run["intent"],
            prompt=(HERE / run["prompt"]).read_text(encoding="utf-8"),
            prompt_name=run["prompt"],
            policy=policy,
            system=(HERE / run["system"]).read_text(encoding="utf-8") if "system" in run else None,
            schema=json.loads((HERE / run["schema"]).read_text(encoding="utf-8")) if "schema" in run else None,
            labels=tuple(run.get("labels", ())),
            id_column=run["id_column"],
            local_only_column=run.get("local_only_column"),
            priority=Priority.BATCH,
            fresh=fresh,
            deadline_s=deadline_s,
        )
        for run in manifest["runs"]
    ]


async def run_demo(
    client: AsyncClient,
    output_dir: Path,
    *,
    policy: Policy,
    progress: Callable[[str], Progress] | None = None,
    fresh: bool = True,
    deadline_s: float | None = None,
    stop: asyncio.Event | None = None,
) -> DemoOutcome:
    """Carry out the four runs one after another and add them up.

    Args:
        client: Of a ledger whose fleet runs.
        output_dir: Made if absent; gets one output file for each run.
        policy: As `demo_specs`.
        progress: Makes the display of a run, given its intent; None = nothing is shown.
        fresh, deadline_s: As `demo_specs`.
        stop: Set it to interrupt; the runs that were begun are in the outcome.
    """
    await asyncio.to_thread(output_dir.mkdir, parents=True, exist_ok=True)
    outcomes: list[batch.BatchOutcome] = []
    for spec in demo_specs(output_dir, policy, fresh=fresh, deadline_s=deadline_s):
        if stop is not None and stop.is_set():
            break
        outcomes.append(await batch.run(spec, client, progress(spec.intent) if progress else None, stop=stop))
    return DemoOutcome(
        tuple(outcome.run_id for outcome in outcomes),
        tuple(outcomes),
        await _summary(client, outcomes, policy),
    )


async def _summary(client: AsyncClient, outcomes: Sequence[batch.BatchOutcome], policy: Policy) -> dict[str, Any]:
    summary = await report.summarize(
        client, [outcome.run_id for outcome in outcomes], flagship=policy.flagship,
        seconds=sum(outcome.report["seconds"] for outcome in outcomes),
    )  # fmt: skip
    return summary | {"outputs": [str(outcome.output) for outcome in outcomes]}
