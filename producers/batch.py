"""The batch runner: a folder or table of documents through the fleet, into a file with answer and cost on each row.

    outcome = await run(BatchSpec(input=Path("receipts"), output=Path("out.jsonl"), intent="extraction", ...), client)

Everything that can be wrong with the command is found before the first job is submitted. After that nothing but a full
disk or an input that changes under our feet stops a run: rows fail one by one, and an outage of Postgres is waited
out.

The same command goes on where it was left, and costs nothing for rows that are done: a row's job is found by the hash
of what is asked (rowkeys.py). Memory does not grow with the number of rows (window.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from policies.goodenough import check_schema
from policies.policyfile import Policy
from policies.pricing import PriceBook
from policies.routing import NoRoute, Request, Snapshot, route
from producers import rowkeys
from producers.collector import Collector
from producers.feeder import Feeder, Patience, Work
from producers.inputs import Row, Source, Survey, open_source, reading
from producers.outputs import Output, check_columns, check_format, open_output
from producers.progress import Progress, Silent
from producers.refusal import Refused
from producers.report import exact, summary
from producers.template import Template, parse
from producers.window import Window
from waybill.client import AsyncClient
from waybill.contract import Priority, new_job_id
from waybill.errors import BrokerUnavailable, InvalidJob, LedgerUnavailable
from waybill.ledger import budgets, queries, reports
from waybill.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """What is to be done.

    Attributes:
        input: A folder of text files, or a .jsonl, .ndjson, .csv or .parquet file.
        output: .jsonl, .csv or .parquet; replaced when the run is complete.
        intent: As the policy file knows it.
        prompt: The prompt with `{field}` in it.
        policy: For checking intent and model.
        prompt_name: What messages call the prompt.
        system: Instructions that stay the same over all rows; no substitution.
        context: A text that all rows share, sent before the prompt; no substitution.
        schema: JSON Schema of the answers.
        labels: Classification: the answers allowed.
        model: Pins the model.
        local_only: No row may leave the local models.
        local_only_column: Column that says so row by row (true/false).
        quality: Share of the flagship's quality to keep, see `Job.quality`; rows that must stay local have no choice.
        tenant: None = the client's.
        deadline_s: Seconds after which a row's answer is of no use, from its submission.
        latency: How soon answers are wanted, see `Job.latency`.
        priority: Batch work goes after interactive work.
        limit: Only the first rows.
        id_column: Column with the row's own id: part of the row's identity, and shown by `waybill why`.
        max_output_tokens: None = the intent's default.
        filled: Columns that must not be empty; None = all that the prompt uses.
        budget: USD the run may spend in all; None = as much as it takes (or as an earlier command has set).
        fresh: Do all rows again, whatever was done before.
        retry_failed: Give rows that failed in an earlier run of this command another chance.
        raw_csv: Leave CSV cells that a spreadsheet would run as formulas as they are.
        max_prompt_bytes: Longest prompt, see WAYBILL_MAX_PAYLOAD_BYTES.
    """

    input: Path
    output: Path
    intent: str
    prompt: str
    policy: Policy
    prompt_name: str = "prompt"
    system: str | None = None
    context: str | None = None
    schema: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()
    model: str | None = None
    local_only: bool = False
    local_only_column: str | None = None
    quality: float | None = None
    tenant: str | None = None
    deadline_s: float | None = None
    latency: str | None = None
    priority: Priority = Priority.BATCH
    limit: int | None = None
    id_column: str | None = None
    max_output_tokens: int | None = None
    filled: tuple[str, ...] | None = None
    budget: Decimal | None = None
    fresh: bool = False
    retry_failed: bool = False
    raw_csv: bool = False
    max_prompt_bytes: int = field(default_factory=lambda: int(Settings.model_fields["max_payload_bytes"].default))


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What became of a run.

    Attributes:
        run_id: In the ledger.
        output: The file written: the output itself, or its `.partial` when interrupted.
        complete: False when it was interrupted.
        rows: Rows of the input.
        succeeded: Rows with an answer.
        failed: Rows whose job ended without one.
        invalid: Rows that could not be submitted.
        adopted: Rows that were done before this command began.
        waiting: Jobs still under way (after an interruption); they end in the fleet and are adopted next time.
        report: The contents of report.json.
    """

    run_id: str
    output: Path
    complete: bool
    rows: int
    succeeded: int
    failed: int
    invalid: int
    adopted: int
    waiting: int
    report: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """0 every row has an answer, 2 some have, 1 none has, 130 interrupted."""
        if not self.complete:
            return 130
        if self.succeeded == self.rows:
            return 0
        return 2 if self.succeeded else 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked specification."""

    spec: BatchSpec
    source: Source
    survey: Survey
    template: Template
    job: Mapping[str, Any]
    """The fields of a Job that all rows share."""
    digest: str


async def run(
    spec: BatchSpec, client: AsyncClient, progress: Progress | None = None, *, stop: asyncio.Event | None = None
) -> BatchOutcome:
    """Carry out a specification.

    Args:
        spec: What to do.
        client: Whose services are used; it stays open.
        progress: Shows how it goes; None = nothing is shown.
        stop: Set it to interrupt: what is done is kept, jobs under way end in the fleet.

    Raises:
        Refused: The specification cannot be carried out; nothing was submitted. Or (rarely) the disk is full or the
            input changed on the way.
        LedgerUnavailable, BrokerUnavailable: A service did not answer at the start; nothing was submitted.
    """
    began_s = time.monotonic()
    stop = stop or asyncio.Event()
    plan = await asyncio.to_thread(check, spec, client)
    await check_services(client)
    output = await asyncio.to_thread(open_output, spec.output, plan.source, plan.survey, raw_csv=spec.raw_csv)
    try:
        run_id, generation = await _open_run(plan, client)
        if spec.budget is not None:
            await client.ledger.fetch(budgets.SET, _budget(run_id, spec.budget))
        with progress or Silent() as shown, reading(plan.source, spec.limit) as rows:
            collector, complete = await _carry(plan, client, output, rows, (run_id, generation), shown, stop)
        path = output.finish() if complete else output.keep()
    except BaseException:
        with contextlib.suppress(Refused):  # a full disk refuses the end of the file as it refused the rows
            output.keep()
        raise
    return _outcome(plan, collector, run_id, path, complete=complete, seconds=time.monotonic() - began_s)


async def _carry(
    plan: Plan,
    client: AsyncClient,
    output: Output,
    rows: Iterator[Row],
    opened: tuple[str, str],
    progress: Progress,
    stop: asyncio.Event,
) -> tuple[Collector, bool]:
    spec, window = plan.spec, Window()
    run_id, generation = opened

    def say(hint: str | None) -> None:
        collector.hint = hint
        collector.tell()

    patience = Patience(say)
    collector = Collector(
        client=client,
        source=plan.source,
        rows=rows,
        window=window,
        output=output,
        patience=patience,
        typed=spec.schema is not None or bool(spec.labels),
        total=plan.survey.rows,
        show=progress.show,
    )
    work = Work(
        template=plan.template,
        job=plan.job,
        digest=plan.digest,
        generation=generation,
        run_id=run_id,
        filled=spec.filled,
        id_column=spec.id_column,
        local_only_column=spec.local_only_column,
        max_prompt_bytes=spec.max_prompt_bytes,
        retry_failed=spec.retry_failed,
    )
    feeding = asyncio.create_task(Feeder(client, work, plan.source, spec.limit, window, patience).feed())
    try:
        return collector, await collector.collect(feeding, stop)
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding


def _outcome(
    plan: Plan, collector: Collector, run_id: str, path: Path, *, complete: bool, seconds: float
) -> BatchOutcome:
    counts = collector.counts
    waiting = counts.written < plan.survey.rows and plan.survey.rows - counts.written
    report = summary(collector.totals, [run_id], seconds=seconds, flagship=plan.spec.policy.flagship)
    report |= {
        "rows": plan.survey.rows,
        "invalid": counts.invalid,
        "adopted": counts.adopted,
        "usd_before": exact(counts.adopted_usd),
        "usd_now": exact(Decimal(report["usd"]) - counts.adopted_usd),
        "output": str(path),
        "complete": complete,
    }
    return BatchOutcome(
        run_id=run_id,
        output=path,
        complete=complete,
        rows=plan.survey.rows,
        succeeded=counts.succeeded,
        failed=counts.failed,
        invalid=counts.invalid,
        adopted=counts.adopted,
        waiting=waiting or 0,
        report=report,
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def check(spec: BatchSpec, client: AsyncClient) -> Plan:
    """Check a specification without touching a service; reads the whole input once.

    Raises:
        Refused: What is wrong, in one line.
    """
    check_format(spec.output)
    template = parse(spec.prompt, spec.prompt_name)
    if not template.fields:
        raise Refused(
            f"{spec.prompt_name}: uses no field of the input, so that every row would ask the same; write {{text}} (or"
            " another column) where the document goes"
        )
    job = _shared_fields(spec, client)
    _check_route(spec)
    source = open_source(spec.input)
    try:
        survey = source.survey(spec.limit)
    except OSError as exc:
        raise Refused(f"INPUT {spec.input}: cannot be read: {exc.strerror}") from None
    if survey.rows == 0:
        raise Refused(f"INPUT {spec.input}: has no rows" + (" (no files)" if spec.input.is_dir() else ""))
    if not survey.columns:
        raise Refused(f"INPUT {spec.input}: not one row can be read; the first: {survey.first_problem}")
    check_columns(survey.columns, spec.input)
    _check_fields(spec, template, survey)
    return Plan(spec, source, survey, template, job, rowkeys.work_digest(job))


def _shared_fields(spec: BatchSpec, client: AsyncClient) -> Mapping[str, Any]:
    if spec.limit is not None and spec.limit < 1:
        raise Refused(f"--limit {spec.limit}: must be 1 or more")
    if spec.schema is not None:
        try:
            check_schema(spec.schema)
        except ValueError as exc:
            raise Refused(f"the schema {exc}") from None
    fields = {
        "intent": spec.intent,
        "system": spec.system,
        "context": spec.context,
        "json_schema": None if spec.schema is None else dict(spec.schema),
        "labels": spec.labels,
        "model": spec.model,
        "local_only": spec.local_only,
        "quality": spec.quality,
        "priority": spec.priority,
        "max_output_tokens": spec.max_output_tokens,
        "deadline_s": spec.deadline_s,
        "latency": spec.latency,
        "reuse": not spec.fresh,
    } | ({} if spec.tenant is None else {"tenant": spec.tenant})
    try:
        probe = client.make_job(prompt="x", **fields)
    except InvalidJob as exc:
        raise Refused(str(exc)) from None
    return {**fields, "tenant": probe.tenant}


def _check_route(spec: BatchSpec) -> None:
    """Ask the router itself, with every provider on: what it refuses, it would refuse for each row."""
    request = Request(
        intent=spec.intent,
        payload_bytes=1,
        model=spec.model,
        local_only=spec.local_only,
        needs=("json_schema",) if spec.schema is not None else (),
        max_output_tokens=spec.max_output_tokens,
    )
    answer = route(request, spec.policy, Snapshot({}, datetime.now(UTC)), PriceBook(spec.policy))
    if isinstance(answer, NoRoute):
        raise Refused(answer.reason)


def _check_fields(spec: BatchSpec, template: Template, survey: Survey) -> None:
    wanted = [
        *((spec.prompt_name, name) for name in template.fields),
        *(("--field", name) for name in spec.filled or ()),
        *(("--id-column", name) for name in [spec.id_column] if name),
        *(("--local-only-column", name) for name in [spec.local_only_column] if name),
    ]
    for who, name in wanted:
        if name not in survey.columns:
            shown = ", ".join(list(survey.columns)[:40]) + (", ..." if len(survey.columns) > 40 else "")
            raise Refused(f"{who}: INPUT {spec.input} has no column {name!r}; its columns are: {shown}")


async def check_services(client: AsyncClient) -> None:
    """Make sure that both services answer and the ledger has its tables.

    Raises:
        LedgerUnavailable, BrokerUnavailable: It does not answer; check the URL.
        Refused: It answers and cannot be used.
    """
    from redis.exceptions import RedisError

    try:
        rows = await client.ledger.fetch(reports.REVISION)
    except LedgerUnavailable as exc:
        raise LedgerUnavailable(f"{exc}; start it, or correct WAYBILL_DATABASE_URL") from None
    except psycopg.Error as exc:
        line = str(exc).strip().splitlines()[0]
        raise Refused(f"Postgres refuses us: {line}; correct WAYBILL_DATABASE_URL") from None
    if not rows[0]["there"]:
        raise Refused("the ledger has no tables yet; run `waybill db upgrade`")
    try:
        await client._redis.ping()
    except (RedisError, OSError) as exc:
        line = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise BrokerUnavailable(f"Redis does not answer: {line}; start it, or correct WAYBILL_REDIS_URL") from None


def _budget(run_id: str, usd: Decimal) -> dict[str, object]:
    return {
        "scope": "run",
        "subject": run_id,
        "period": "total",
        "cap_usd": usd,
        "at_cap": "stop",
        "alert_shares": [50, 80, 100],
    }


async def _open_run(plan: Plan, client: AsyncClient) -> tuple[str, str]:
    """The run's id and generation: the newest of this command, a new one with `fresh`."""
    spec, tenant = plan.spec, plan.job["tenant"]
    base = rowkeys.digest("run", plan.digest, spec.prompt, spec.local_only, spec.id_column, str(spec.input.resolve()))
    latest = await client.ledger.fetch(reports.LATEST_RUN, {"tenant": tenant, "fingerprint": base})
    fingerprint = latest[0]["fingerprint"] if latest else base
    if spec.fresh:
        number = int(fingerprint.partition(".")[2] or 0) + 1
        fingerprint = f"{base}.{number}"
    rows = await client.ledger.fetch(
        queries.OPEN_RUN,
        {
            "id": new_job_id(time.time_ns() // 1_000_000, os.urandom(10)),
            "tenant": tenant,
            # A file's name need not be Unicode; the ledger's text is.
            "name": f"{spec.intent} {spec.input.name}".encode("utf-8", "replace").decode(),
            "fingerprint": fingerprint,
        },
    )
    if rows[0]["state"] != "open":
        raise Refused(f"run {rows[0]['id']} is {rows[0]['state']}; begin a new one with --fresh")
    # Rows of a first run are shared with other inputs that hold the same rows; a fresh run shares nothing.
    return rows[0]["id"], fingerprint if "." in fingerprint else ""
