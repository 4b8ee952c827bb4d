"""The jobs API: one job at a time, or a run of many uploaded as JSON Lines.

    POST /v1/jobs                  submit; 202, or 200 with the earlier job for a known idempotency key
    GET /v1/jobs                   newest first; ?limit ?after ?state ?run
    GET /v1/jobs/{id}              POST /v1/jobs/{id}/cancel      POST /v1/jobs/{id}/feedback
    GET /v1/jobs/{id}/result       ?wait=30 seconds at most; 202 while it goes on
    GET /v1/jobs/{id}/events       server-sent events: state, delta, end
    POST /v1/runs                  JSON Lines, a job a line; ?name=
    GET /v1/runs                   GET /v1/runs/{id}     POST /v1/runs/{id}/cancel     GET /v1/runs/{id}/results

Whose job it is comes from the key. A job of another tenant is a 404, and a field that is not known is a 400.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from policies.goodenough import check_schema
from producers.gateway.admin import parsed, plain
from producers.gateway.body import parse_object, read_object
from producers.gateway.errors import Kind, Refusal
from producers.gateway.principal import Principal, authorize
from waybill.client import Outcome
from waybill.contract import FINAL_STATES, Job, JobState, new_job_id
from waybill.errors import IdempotencyConflict, InvalidFeedback, InvalidJob
from waybill.ledger import budgets, jobs, oncall, queries
from waybill.streaming import read_deltas

MOST_ROWS: Final = 100_000
"""Of one upload; more in a second one."""
MOST_UPLOAD_BYTES: Final = 512 * 1024 * 1024
MOST_LINE_BYTES: Final = 9 * 1024 * 1024
MOST_ERRORS: Final = 100
"""Bad lines that the answer names; the others are counted."""
LONGEST_WAIT_S: Final = 60.0
HEARTBEAT_S: Final = 10.0
LONGEST_EVENTS_S: Final = 3600.0
_CHUNK: Final = 500
# What a client must not say: the key says whose job it is, the gateway how its pieces come back.
_NOT_FROM_OUTSIDE: Final = ("tenant", "key_id")


class Feedback(BaseModel):
    """POST /v1/jobs/{id}/feedback."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float = Field(ge=0, le=1)
    note: str | None = Field(default=None, max_length=2000)


def make_job(body: Mapping[str, Any], who: Principal) -> Job:
    """The job of a request's fields.

    Raises:
        Refusal: Naming the field that is wrong.
    """
    allowed = Job.model_fields.keys() - set(_NOT_FROM_OUTSIDE) - {"wire"}
    for name in body:
        if name not in allowed:
            raise Refusal(
                Kind.INVALID,
                f"{str(name)[:100]!r} is no field of a job; there are: {', '.join(sorted(allowed))}",
                param=str(name)[:100],
            )
    fields = dict(body)
    fields["priority"] = {"interactive": "hi", "batch": "lo"}.get(
        str(body.get("priority", "interactive")), body.get("priority")
    )
    try:
        job = Job(**fields, tenant=who.tenant, key_id=who.key_id)
        if job.json_schema is not None:
            check_schema(job.json_schema)
        return job
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refusal(Kind.INVALID, first["msg"].removeprefix("Value error, "), param=where or None) from None
    except ValueError as exc:
        raise Refusal(Kind.INVALID, str(exc), param="json_schema") from None


async def check_budgets(request: Request, who: Principal, run_id: str | None = None) -> None:
    """Say at once what the fleet would say later: a budget that is used up.

    Raises:
        Refusal: One is, and its policy is to stop.
    """
    ledger = request.app.state.gateway.client.ledger
    params = {"tenant": who.tenant, "key_id": who.key_id, "run_id": run_id}
    for row in await ledger.fetch(budgets.SPENT_UP, params):
        period = "" if row["period"] == "total" else f" per {row['period']}"
        raise Refusal(
            Kind.BILLING,
            f"the {row['scope']}'s budget of ${row['cap_usd'].normalize():f}{period} is used up; nothing was accepted",
        )


async def submit(request: Request) -> Response:
    """Accept a job."""
    who = await authorize(request, "jobs")
    body = await read_object(request)
    key = request.headers.get("idempotency-key")
    if key is not None:
        body.setdefault("idempotency_key", key)
    job = make_job(body, who)
    await check_budgets(request, who)
    client = request.app.state.gateway.client
    began = new_job_id(time.time_ns() // 1_000_000 - 1, b"\0" * 10)
    try:
        job_id = await client.submit(job)
    except IdempotencyConflict as exc:
        raise Refusal(Kind.CONFLICT, str(exc), param="idempotency_key") from None
    except InvalidJob as exc:
        raise Refusal(Kind.INVALID, str(exc)) from None
    row = await _row(request, who, job_id)
    return JSONResponse(_shown(row), status_code=202 if job_id >= began else 200, headers={"x-waybill-job": job_id})


def _id(request: Request) -> str:
    """The id in the path; what is no id is not there."""
    text = request.path_params["id"]
    try:
        return str(UUID(text))
    except ValueError:
        raise _unknown(request) from None


def _unknown(request: Request) -> Refusal:
    kind = "run" if "/runs/" in request.url.path else "job"
    return Refusal(Kind.NOT_FOUND, f"there is no {kind} {str(request.path_params['id'])[:100]!r}")


async def _row(request: Request, who: Principal, job_id: str) -> Any:
    rows = await request.app.state.gateway.client.ledger.fetch(
        jobs.LIST, {"tenant": who.tenant, "id": job_id, "after": None, "run": None, "state": None, "limit": 1}
    )
    if not rows:
        raise _unknown(request)
    return rows[0]


def _shown(row: Any) -> dict[str, Any]:
    fields = dict(row)
    unpriced = fields.pop("unpriced")
    fields["usd"] = None if unpriced else str(fields["usd"] or 0)
    fields["priority"] = "interactive" if fields["priority"] == "hi" else "batch"
    error = {"code": fields.pop("error_code"), "message": fields.pop("error")}
    is_failed = fields["state"] in ("failed", "dead", "cancelled")
    return {"object": "job", **plain([fields])[0], "error": error if is_failed else None}


def page(request: Request) -> tuple[int, str | None]:
    """?limit (1 to 100, default 20) and ?after (an id).

    Raises:
        Refusal: One is something else.
    """
    limit = request.query_params.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:5]) <= 100):
        raise Refusal(Kind.INVALID, "must be a number from 1 to 100", param="limit")
    return int(limit), _uuid(request, "after")


def _uuid(request: Request, name: str) -> str | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return str(UUID(text))
    except ValueError:
        raise Refusal(Kind.INVALID, "must be an id", param=name) from None


async def list_jobs(request: Request) -> Response:
    """The tenant's jobs, newest first."""
    who = await authorize(request, "jobs")
    limit, after = page(request)
    state = request.query_params.get("state")
    if state is not None and state not in {s.value for s in JobState}:
        raise Refusal(Kind.INVALID, f"must be one of {', '.join(s.value for s in JobState)}", param="state")
    params = {"tenant": who.tenant, "id": None, "after": after, "run": _uuid(request, "run"), "state": state}
    rows = await request.app.state.gateway.client.ledger.fetch(jobs.LIST, {**params, "limit": limit + 1})
    data = [_shown(row) for row in rows[:limit]]
    return JSONResponse(
        {"object": "list", "data": data, "has_more": len(rows) > limit, "last_id": data[-1]["id"] if data else None}
    )


async def get_job(request: Request) -> Response:
    """Where a job is and what it has cost so far."""
    who = await authorize(request, "jobs")
    return JSONResponse(_shown(await _row(request, who, _id(request))))


async def cancel(request: Request) -> Response:
    """Stop a job; harmless when it is over."""
    who = await authorize(request, "jobs")
    job_id = _id(request)
    await _row(request, who, job_id)
    await request.app.state.gateway.client.cancel(job_id)
    return JSONResponse(_shown(await _row(request, who, job_id)))


def outcome_body(outcome: Outcome) -> dict[str, Any]:
    """What became of a job, with its answer."""
    body: dict[str, Any] = {
        "object": "job.result",
        "id": outcome.job_id,
        "state": outcome.state.value,
        "usd": None if outcome.usd is None else str(outcome.usd),
        "attempts": outcome.attempts,
        "lane": outcome.lane,
    }
    if outcome.error is not None:
        return {**body, "error": {"code": outcome.error.code, "message": outcome.error.message}}
    result = outcome.result
    assert result is not None  # an outcome has one of the two
    return {
        **body,
        "text": result.text,
        "data": result.data,
        "model": result.model,
        "reason": result.reason,
        "finished_at": result.finished_at.isoformat(),
        "metadata": dict(result.metadata),
        "usage": {
            "input_tokens": result.usage.prompt_tokens,
            "output_tokens": result.usage.output_tokens,
            "cache_read_tokens": result.usage.cache_read_tokens,
        },
    }


async def result(request: Request) -> Response:
    """The answer, or why there is none; 202 while the job goes on."""
    who = await authorize(request, "jobs")
    job_id = _id(request)
    text = request.query_params.get("wait", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= LONGEST_WAIT_S:
        raise Refusal(Kind.INVALID, f"must be seconds from 0 to {LONGEST_WAIT_S:.0f}", param="wait")
    await _row(request, who, job_id)
    client, end, pause_s = request.app.state.gateway.client, time.monotonic() + wait_s, 0.05
    while not (found := await client.outcomes([job_id])):
        left = end - time.monotonic()
        if left <= 0:
            row = await _row(request, who, job_id)
            return JSONResponse(_shown(row), status_code=202, headers={"retry-after": "1"})
        await asyncio.sleep(min(left, pause_s))
        pause_s = min(0.5, pause_s * 1.5)
    return JSONResponse(outcome_body(found[0]))


async def events(request: Request) -> Response:
    """State changes and, for jobs with `stream`, pieces of the answer, until the job is over."""
    who = await authorize(request, "jobs")
    job_id = _id(request)
    await _row(request, who, job_id)
    return StreamingResponse(
        _events(request, who, job_id), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def _events(request: Request, who: Principal, job_id: str) -> AsyncIterator[bytes]:
    gateway = request.app.state.gateway
    client, told, spoke = gateway.client, "", time.monotonic()
    end = time.monotonic() + LONGEST_EVENTS_S
    async with aclosing(cast("AsyncGenerator[str | None]", read_deltas(gateway.redis, job_id, block_s=0.5))) as deltas:
        while time.monotonic() < end:
            piece = await anext(deltas, "")
            if piece:
                yield _event("delta", {"text": piece})
                spoke = time.monotonic()
                continue
            rows = await client.ledger.fetch(jobs.STATE, {"id": job_id, "tenant": who.tenant})
            state = rows[0]["state"] if rows else "gone"
            if state != told:
                told, spoke = state, time.monotonic()
                yield _event("state", {"id": job_id, "state": state})
            if not rows or JobState(state) in FINAL_STATES:
                found = await client.outcomes([job_id])
                yield _event("end", outcome_body(found[0]) if found else {"id": job_id, "state": state})
                return
            if piece == "":  # the stream of pieces has ended, and the ledger does not know it yet
                await asyncio.sleep(0.2)
            if time.monotonic() - spoke > HEARTBEAT_S:
                spoke = time.monotonic()
                yield b": still going on\n\n"


async def feedback(request: Request) -> Response:
    """How good the answer was, from 0 to 1: kept as a grade that routing learns from."""
    who = await authorize(request, "jobs")
    job_id = _id(request)
    asked = await parsed(request, Feedback)
    await _row(request, who, job_id)
    try:
        model = await request.app.state.gateway.client.feedback(job_id, asked.score, note=asked.note, tenant=who.tenant)
    except LookupError as exc:
        raise Refusal(Kind.NOT_FOUND, str(exc.args[0])) from None
    except InvalidFeedback as exc:
        raise Refusal(Kind.INVALID, str(exc)) from None
    return JSONResponse({"object": "job.feedback", "id": job_id, "score": asked.score, "model": model})


# --- runs -------------------------------------------------------------------------------------------------------------


async def lines_of(request: Request) -> AsyncIterator[bytes]:
    """The lines of an upload as they come, without holding more than one.

    Raises:
        Refusal: The upload or a line is too large, or it is compressed.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(Kind.INVALID, "send the lines uncompressed", param="content-encoding")
    rest, size = b"", 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_UPLOAD_BYTES:
            raise Refusal(Kind.TOO_LARGE, f"the upload has more than {MOST_UPLOAD_BYTES:,} bytes; make several runs")
        rest += part
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line
        if len(rest) > MOST_LINE_BYTES:
            raise Refusal(Kind.TOO_LARGE, f"a line has more than {MOST_LINE_BYTES:,} bytes")
    yield rest


async def create_run(request: Request) -> Response:
    """Take a run: good lines are accepted as they come, bad ones are named. The same `Idempotency-Key` goes on with it."""
    who = await authorize(request, "jobs")
    await check_budgets(request, who)
    client = request.app.state.gateway.client
    key = request.headers.get("idempotency-key")
    fingerprint = hashlib.sha256(key.encode() if key is not None else os.urandom(32)).hexdigest()
    opened = await client.ledger.fetch(
        queries.OPEN_RUN,
        {
            "id": new_job_id(time.time_ns() // 1_000_000, os.urandom(10)),
            "tenant": who.tenant,
            "name": _name(request),
            "fingerprint": f"api:{fingerprint}",
        },
    )
    run_id = opened[0]["id"]
    if opened[0]["state"] == "cancelled":
        raise Refusal(Kind.CONFLICT, f"run {run_id} of this idempotency key was cancelled; use another key")
    accepted, rejected, seen = 0, 0, 0
    errors: list[dict[str, Any]] = []
    rows: list[tuple[int, Job]] = []

    async def flush() -> None:
        nonlocal accepted
        # Each line has a key of its own within the run, so that an upload that broke off can be sent again.
        batch = [job.model_copy(update={"idempotency_key": f"{run_id}:{seq}"}) for seq, job in rows]
        await client.submit_many(batch, run_id=run_id, seqs=[seq for seq, _ in rows])
        accepted += len(rows)
        rows.clear()

    number = -1
    async for line in lines_of(request):
        number += 1
        if not line.strip():
            continue
        seen += 1
        if seen % 10 == 0:
            await asyncio.sleep(0)  # the streams of this gateway get a turn
        if seen > MOST_ROWS:
            await flush()
            raise Refusal(
                Kind.TOO_LARGE,
                f"a run has at most {MOST_ROWS:,} lines; run {run_id} has the first ones, put the rest in another",
            )
        try:
            rows.append((number, make_job({"priority": "batch", **parse_object(line)}, who)))
        except Refusal as refusal:
            rejected += 1
            if len(errors) < MOST_ERRORS:
                errors.append({"line": number + 1, "param": refusal.param, "message": refusal.message})
        if len(rows) >= _CHUNK:
            await flush()
    try:
        await flush()
    except IdempotencyConflict:
        raise Refusal(Kind.CONFLICT, f"run {run_id} of this idempotency key has other lines; use another key") from None
    body = {"id": run_id, "object": "run", "accepted": accepted, "rejected": rejected, "errors": errors}
    return JSONResponse(body, status_code=202)


def _name(request: Request) -> str:
    name = request.query_params.get("name", "")
    if len(name) > 200 or not (name == "" or name.isprintable()):
        raise Refusal(Kind.INVALID, "has at most 200 printable characters", param="name")
    return name or "upload"


async def _run(request: Request, who: Principal) -> dict[str, Any]:
    run_id = _id(request)
    ledger = request.app.state.gateway.client.ledger
    rows = await ledger.fetch(jobs.RUNS, {"tenant": who.tenant, "id": run_id, "after": None, "limit": 1})
    if not rows:
        raise _unknown(request)
    counts = await ledger.fetch(jobs.RUN_COUNTS, {"tenant": who.tenant, "run": run_id})
    unfinished = sum(row["jobs"] for row in counts if JobState(row["state"]) not in FINAL_STATES)
    return {
        "object": "run",
        **plain(rows)[0],
        "jobs": {row["state"]: row["jobs"] for row in counts},
        "unfinished": unfinished,
        "usd": None if any(row["unpriced"] for row in counts) else str(sum(row["usd"] for row in counts)),
    }


async def get_run(request: Request) -> Response:
    """How far a run is and what it has cost so far."""
    who = await authorize(request, "jobs")
    return JSONResponse(await _run(request, who))


async def list_runs(request: Request) -> Response:
    """The tenant's runs, newest first."""
    who = await authorize(request, "jobs")
    limit, after = page(request)
    rows = await request.app.state.gateway.client.ledger.fetch(
        jobs.RUNS, {"tenant": who.tenant, "id": None, "after": after, "limit": limit + 1}
    )
    data = [{"object": "run", **row} for row in plain(rows[:limit])]
    return JSONResponse(
        {"object": "list", "data": data, "has_more": len(rows) > limit, "last_id": data[-1]["id"] if data else None}
    )


async def cancel_run(request: Request) -> Response:
    """Stop all of a run that is not over."""
    who = await authorize(request, "jobs")
    await _run(request, who)
    await request.app.state.gateway.client.ledger.fetch(oncall.CANCEL_RUN, {"run_id": _id(request)})
    return JSONResponse(await _run(request, who))


async def run_results(request: Request) -> Response:
    """The jobs of a run that are over, in its order, as JSON Lines."""
    who = await authorize(request, "jobs")
    await _run(request, who)
    return StreamingResponse(_run_lines(request, _id(request)), media_type="application/x-ndjson")


async def _run_lines(request: Request, run_id: str) -> AsyncIterator[bytes]:
    client, after = request.app.state.gateway.client, -1
    while rows := await client.ledger.fetch(jobs.RUN_PAGE, {"run": run_id, "after": after, "limit": _CHUNK}):
        outcomes = {outcome.job_id: outcome for outcome in await client.outcomes([row["id"] for row in rows])}
        lines = [{"line": row["seq"] + 1, **outcome_body(outcomes[row["id"]])} for row in rows if row["id"] in outcomes]
        yield b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        after = rows[-1]["seq"]


routes = [
    Route("/v1/jobs", list_jobs, methods=["GET"]),
    Route("/v1/jobs", submit, methods=["POST"]),
    Route("/v1/jobs/{id}", get_job, methods=["GET"]),
    Route("/v1/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/jobs/{id}/result", result, methods=["GET"]),
    Route("/v1/jobs/{id}/events", events, methods=["GET"]),
    Route("/v1/jobs/{id}/feedback", feedback, methods=["POST"]),
    Route("/v1/runs", list_runs, methods=["GET"]),
    Route("/v1/runs", create_run, methods=["POST"]),
    Route("/v1/runs/{id}", get_run, methods=["GET"]),
    Route("/v1/runs/{id}/cancel", cancel_run, methods=["POST"]),
    Route("/v1/runs/{id}/results", run_results, methods=["GET"]),
]
