"""Carries batches through: reads a batch's file, hands its requests over as jobs, and closes it when all have ended.

Any number of gateways may run this. A batch is in the hands of one at a time, under a lease; every step may be done twice, so
a gateway that is lost in the middle leaves nothing that another one could not go on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request

from producers.gateway.batches import ENDPOINTS
from producers.gateway.batchlines import dump_refusal, ended_rows, openai_line
from producers.gateway.body import parse_object
from producers.gateway.errors import Kind, Refusal
from producers.gateway.files import read_parts
from producers.gateway.principal import Principal
from producers.gateway.request import make_job
from waybill.client import AsyncClient
from waybill.contract import Job, Priority
from waybill.errors import IdempotencyConflict, InvalidJob, LedgerUnavailable
from waybill.ledger import batches, webhooks

if TYPE_CHECKING:
    from policies.dialects.neutral import Dialect
    from policies.policyfile import Policy

log = logging.getLogger("waybill.gateway")

LEASE_S: Final = 60.0
LOOK_EVERY_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
MOST_ROWS: Final = 50_000
"""Of one OpenAI batch."""
MOST_PROBLEMS: Final = 100
MOST_CUSTOM_ID: Final = 512
CHUNK: Final = 200
BREATH: Final = 10
"""Requests after which the streams of this gateway get a turn."""


class Clerk:
    """One per gateway process."""

    def __init__(self, client: AsyncClient, policy: Policy, off: frozenset[str]) -> None:
        self._client, self._off = client, off
        self.policy = policy
        """In force; replaced as a whole."""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Call in the loop."""
        self._task = asyncio.create_task(self._run(), name="clerk")

    async def close(self) -> None:
        """Stop; another gateway goes on when the lease ends."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def hurry(self) -> None:
        """There is a new batch, or one to be stopped."""
        self._news.set()

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                while await self.step():
                    pass
            except LedgerUnavailable as exc:
                log.warning("service.away service=ledger error=%s", exc)
            except Exception:
                log.exception("a batch cannot be carried on")  # said each time; the others go on
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_EVERY_S)

    async def step(self) -> bool:
        """Take one batch a step further. False when none is due."""
        rows = await self._client.ledger.fetch(batches.TAKE, {"lease_s": LEASE_S})
        if not rows:
            return False
        batch: dict[str, Any] = dict(rows[0])
        if batch["in_progress_at"] is None:
            if not await self._begin(batch):
                return True
            batch = {**batch, "status": "in_progress"}
        [row] = await self._client.ledger.fetch(batches.IS_DONE, {"run": batch["run"]})
        if row["done"]:
            await self._end(batch)
        else:
            pause_s = min(LONGEST_PAUSE_S, max(LOOK_EVERY_S, batch["age_s"] / 20))
            await self._client.ledger.fetch(batches.HOLD, {"id": batch["id"], "for_s": pause_s})
        return True

    # --- the beginning ------------------------------------------------------------------------------------------------

    async def _begin(self, batch: Mapping[str, Any]) -> bool:
        """Check the file and hand its requests over. False when the batch failed as a whole."""
        total = batch["total"]
        if batch["dialect"] == "openai":
            total, problems = await self._check(batch)
            if problems:
                await self._client.ledger.fetch(
                    batches.FAIL, {"id": batch["id"], "errors": json.dumps(problems[:MOST_PROBLEMS])}
                )
                return False
        models = await self._hand_over(batch)
        await self._client.ledger.fetch(
            batches.BEGIN,
            {"id": batch["id"], "total": total, "model": next(iter(models)) if len(models) == 1 else None},
        )
        return True

    async def _lines(self, batch: Mapping[str, Any]) -> AsyncIterator[tuple[int, bytes]]:
        """The lines of its file with their numbers from 1; empty ones are left out."""
        rest, number = b"", 0
        async for part in read_parts(self._client.ledger, batch["input_file_id"]):
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                number += 1
                if line.strip():
                    yield number, line
        if rest.strip():
            yield number + 1, rest

    async def _check(self, batch: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        """How many lines there are, and what makes them no batch."""
        problems: list[dict[str, Any]] = []
        seen: set[str] = set()
        count = 0

        def problem(code: str, message: str, line: int | None, param: str | None = None) -> None:
            problems.append({"code": code, "message": message, "param": param, "line": line})

        async for number, text in self._lines(batch):
            count += 1
            if count > MOST_ROWS or len(problems) >= MOST_PROBLEMS:
                break
            if count % BREATH == 0:
                await asyncio.sleep(0)
            if count % 1000 == 0:
                await self._hold(batch)
            try:
                line = parse_object(text)
            except Refusal as refusal:
                problem("invalid_json_line", refusal.message, number)
                continue
            custom_id = line.get("custom_id")
            if (
                not isinstance(custom_id, str)
                or not 1 <= len(custom_id) <= MOST_CUSTOM_ID
                or not _is_storable(custom_id)
            ):
                problem("invalid_custom_id", f"must be a text of 1 to {MOST_CUSTOM_ID} characters", number, "custom_id")
            elif custom_id in seen:
                problem("duplicate_custom_id", f"{custom_id!r} is used twice", number, "custom_id")
            else:
                seen.add(custom_id)
            if line.get("method") != "POST":
                problem("invalid_method", "must be POST", number, "method")
            if line.get("url") != batch["endpoint"]:
                problem("mismatched_endpoint", f"must be {batch['endpoint']}, as the batch says", number, "url")
            if not isinstance(line.get("body"), dict):
                problem("invalid_body", "must be an object", number, "body")
        if count > MOST_ROWS:
            problem("too_many_requests", f"a batch has at most {MOST_ROWS:,} requests", None)
        if count == 0:
            problem("empty_file", "the file has no requests, or is gone", None)
        return count, problems

    async def _hand_over(self, batch: Mapping[str, Any]) -> set[str]:
        """Every request becomes a job at its place in the run, or a row that says why not. Returns their models."""
        who = Principal(batch["tenant"], batch["key_id"], frozenset({"jobs"}))
        headers = [(name.encode(), str(value).encode()) for name, value in batch["headers"].items()]
        request = Request({"type": "http", "method": "POST", "path": batch["endpoint"], "headers": headers})
        dialect: Dialect = "messages" if batch["dialect"] == "anthropic" else ENDPOINTS[batch["endpoint"]]  # type: ignore[assignment]  # its values are dialects
        models: set[str] = set()
        rows: list[tuple[int, str, str | None]] = []
        jobs: list[tuple[int, Job]] = []
        seq = -1
        async for _, text in self._lines(batch):
            seq += 1
            if seq % BREATH == 0:
                await asyncio.sleep(0)
            line = json.loads(text)
            body = line["params"] if dialect == "messages" else line["body"]
            models.add(str(body.get("model"))[:200])
            try:
                jobs.append((seq, self._job(request, dialect, body, who, batch, seq)))
                rows.append((seq, line["custom_id"], None))
            except Refusal as refusal:
                rows.append((seq, line["custom_id"], dump_refusal(refusal)))
            if len(rows) >= CHUNK:
                await self._store(batch, rows, jobs)
        await self._store(batch, rows, jobs)
        return models

    def _job(
        self,
        request: Request,
        dialect: Dialect,
        body: dict[str, Any],
        who: Principal,
        batch: Mapping[str, Any],
        seq: int,
    ) -> Job:
        if body.get("stream"):
            raise Refusal(Kind.INVALID, "a request of a batch cannot be streamed", param="stream")
        try:
            job, _, _ = make_job(request, dialect, body, who, self.policy, self._off)
            return job.model_copy(
                update={
                    "priority": Priority.BATCH,
                    "deadline_s": max(1.0, batch["left_s"]),
                    # Handed over again after a crash: the same place is the same job.
                    "idempotency_key": f"{batch['id']}:{seq}",
                    "stream": False,
                }
            )
        except InvalidJob as exc:
            raise Refusal(Kind.INVALID, str(exc)) from None

    async def _store(
        self, batch: Mapping[str, Any], rows: list[tuple[int, str, str | None]], jobs: list[tuple[int, Job]]
    ) -> None:
        if rows:
            await self._client.ledger.fetch(
                batches.ADD_ROWS,
                {
                    "id": batch["id"],
                    "seqs": [seq for seq, _, _ in rows],
                    "custom_ids": [custom_id for _, custom_id, _ in rows],
                    "errors": [error for _, _, error in rows],
                },
            )
        if jobs:
            try:
                await self._client.submit_many([job for _, job in jobs], run_id=batch["run"], seqs=[s for s, _ in jobs])
            except IdempotencyConflict:
                log.warning("batch %s: a part was handed over before by another version of this code", batch["id"])
        rows.clear()
        jobs.clear()
        await self._hold(batch)

    async def _hold(self, batch: Mapping[str, Any]) -> None:
        await self._client.ledger.fetch(batches.HOLD, {"id": batch["id"], "for_s": LEASE_S})

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _end(self, batch: Mapping[str, Any]) -> None:
        """Count what became of its requests and close it."""
        ledger, batch_id = self._client.ledger, batch["id"]
        await ledger.fetch(batches.FINALIZE, {"id": batch_id})
        counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)
        sizes = {"output": 0, "error": 0}
        number = 0
        async for row in ended_rows(self._client, batch):
            counts[row.kind] += 1
            if batch["dialect"] == "openai":
                sizes["output" if row.kind == "succeeded" else "error"] += len(openai_line(batch_id, row))
            number += 1
            if number % BREATH == 0:
                await asyncio.sleep(0)
            if number % 5000 == 0:
                await self._hold(batch)
        files: dict[str, str | None] = {}
        for kind, size in sizes.items():
            files[kind] = await self._output_file(batch, kind, size) if size else None
        status = "expired" if counts["expired"] else "completed"
        params = {"id": batch_id, "status": status, "counts": json.dumps(counts), **files}
        ended = await ledger.fetch(batches.END, params)
        if not ended:
            return
        if batch["dialect"] == "anthropic":
            await ledger.fetch(batches.DROP_FILE, {"id": batch["input_file_id"]})
        data = {"id": batch_id, "status": ended[0]["status"], "counts": counts}
        await ledger.fetch(
            webhooks.ADD,
            {
                "tenant": batch["tenant"],
                "webhook": None,
                "event": "batch.finished",
                "subject": batch_id,
                "payload": json.dumps({"type": "batch.finished", "timestamp": None, "data": data}),
            },
        )

    async def _output_file(self, batch: Mapping[str, Any], kind: str, size: int) -> str:
        """A file whose bytes are made when it is read."""
        file_id = f"file-{batch['id'].removeprefix('batch_')}-{kind}"
        ledger = self._client.ledger
        await ledger.fetch(batches.DROP_FILE, {"id": file_id})  # of an end that broke off
        await ledger.fetch(
            batches.BEGIN_FILE,
            {
                "id": file_id,
                "tenant": batch["tenant"],
                "purpose": "batch_output",
                "filename": f"{batch['id']}_{kind}.jsonl",
                "batch": batch["id"],
            },
        )
        await ledger.fetch(batches.END_FILE, {"id": file_id, "bytes": size})
        return file_id


def _is_storable(text: str) -> bool:
    """Whether Postgres keeps it: no NUL, no half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
