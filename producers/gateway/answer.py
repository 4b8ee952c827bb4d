"""Carries a request through the fleet and brings its answer back, whole or as a stream of events.

The job goes the way of every job; what comes back are letters (mailroom.py). Until the first frame the client has seen
nothing: an error still is an HTTP status, and a fallback costs nothing. The terminal frames come with the end letter, which
is sent after the answer was stored: a client that saw the end has an answer in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from policies.dialects import sse
from policies.dialects.neutral import Dialect
from producers.gateway.errors import Kind, Refusal, error_body, id_headers
from producers.gateway.mailroom import Box, Mailroom
from waybill.client import AsyncClient, fresh_job_id
from waybill.contract import FINAL_STATES, Job, JobState
from waybill.errors import WaybillError
from waybill.ledger import jobs
from waybill.mail import Letter

log = logging.getLogger("waybill.gateway")

HEARTBEAT_S: Final = 10.0
"""Silence after which a stream is begun, or kept awake, with a comment: idle connections die at 30 to 60 s in proxies."""
_FAMILY: Final[Mapping[Dialect, Any]] = {"chat": "openai", "responses": "openai", "messages": "anthropic"}
_KIND_OF_CODE: Final[Mapping[str, Kind]] = {
    "bad_request": Kind.INVALID,
    "budget_exhausted": Kind.BILLING,
    "unpriced": Kind.INVALID,
    "context_length": Kind.INVALID,
    "content_policy": Kind.INVALID,
    "bad_schema": Kind.INVALID,
    "no_route": Kind.INVALID,
    "unknown_intent": Kind.INVALID,
    "unknown_model": Kind.NOT_FOUND,
    "not_found": Kind.NOT_FOUND,
    "too_large": Kind.TOO_LARGE,
    "deadline": Kind.TIMEOUT,
    "cancelled": Kind.CONFLICT,
    "rate_limit": Kind.RATE_LIMIT,
    "ramp_limit": Kind.RATE_LIMIT,
    "no_capacity": Kind.RATE_LIMIT,
    "internal_error": Kind.SERVER_ERROR,
}
_CODES: Final = {"context_length": "context_length_exceeded", "not_found": "model_not_found"}


class Carriage:
    """One job and what comes back of it."""

    def __init__(self, client: AsyncClient, mailroom: Mailroom, job: Job, dialect: Dialect, request_id: str) -> None:
        self.job, self.dialect, self.request_id = job, dialect, request_id
        self.job_id = fresh_job_id()
        self.head: dict[str, Any] = {}
        self._client, self._mailroom = client, mailroom
        self._box: Box | None = None
        self._is_own = True

    async def submit(self) -> None:
        """Have the job accepted.

        Raises:
            InvalidJob, LedgerUnavailable: It was not.
        """
        box = self._box = self._mailroom.open(self.job_id)
        try:
            ids = await self._client.submit_many([self.job], ids=[self.job_id], reply_to=self._mailroom.name)
        except BaseException:
            self._mailroom.drop(box)
            raise
        if ids[0] != self.job_id:  # its key was used before: that job's mail goes, or went, to somebody else
            self._mailroom.drop(box)
            self.job_id, self._is_own = ids[0], False
            box = self._box = self._mailroom.open(self.job_id)
            if (await self._client.states(ids)).get(self.job_id) in FINAL_STATES:
                box.say_final()
        box.since = time.monotonic()

    async def note_retry(self, count: str) -> None:
        """Write down, for `waybill why` and the log, that the client's SDK did not send this for the first time."""
        if not (count.isascii() and count.isdigit() and len(count) < 4 and int(count)):
            return
        log.info("client.retried job=%s retry=%s dialect=%s", self.job_id, count, self.dialect)
        with contextlib.suppress(WaybillError):
            await self._client.ledger.fetch(jobs.NOTE_RETRY, {"id": self.job_id, "retry": int(count)})

    def close(self) -> None:
        """Nobody waits any more."""
        if self._box is not None:
            self._mailroom.drop(self._box)

    async def abandon(self) -> None:
        """The client has left: the call is cancelled, and what it cost is booked."""
        if self._is_own:
            with contextlib.suppress(WaybillError):
                await self._client.cancel(self.job_id)

    async def next(self, timeout_s: float) -> Letter | None:
        """The next letter; None when none came in time. An end that was lost is made up from the ledger.

        Raises:
            Refusal: The client did not keep up.
        """
        box = self._box
        assert box is not None  # submit() has opened it
        letter = await box.next(timeout_s)
        if letter is not None:
            return letter
        if box.overflowed:
            await self.abandon()
            raise Refusal(
                Kind.SERVER_ERROR, f"the answer was read too slowly and broken off; ask for job {self.job_id} again"
            )
        if not box.is_final:
            return None
        end = await self._end_from_ledger()
        return Letter("end", self.job_id, end["attempt"], -1, json.dumps(end).encode())

    async def whole(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Wait for the answer: its body and headers.

        Raises:
            Refusal: The job ended without one.
        """
        while True:
            letter = await self.next(HEARTBEAT_S)
            if letter is not None and letter.kind == "end":
                end = await self._completed(letter.json())
                if "answer" not in end:
                    end = {**end, **await self._end_from_ledger()}
                return end["answer"], self.headers(end)

    async def frames(self) -> AsyncIterator[bytes]:
        """The events for the client; an empty one whenever it is time for a heartbeat. `head` is set before the first.

        Raises:
            Refusal: The job ended without an answer before anything was shown.
        """
        attempt, expected = 0, 0
        while True:
            letter = await self.next(HEARTBEAT_S)
            if letter is None:
                yield b""
                continue
            if letter.kind == "end":
                for frame in await self._last(letter, shown=attempt > 0, is_whole=letter.number in (-1, expected)):
                    yield frame
                return
            if letter.attempt < attempt or (letter.attempt == attempt and letter.number < expected):
                continue  # sent again because nobody knew whether it had come
            if letter.attempt != attempt:
                if attempt > 0 and not (self.job.wire is not None and self.job.wire.restart):
                    await self.abandon()
                    yield self._error(Refusal(Kind.SERVER_ERROR, "the answer broke off and began anew elsewhere"))
                    return
                if attempt > 0:
                    yield self._restart(letter)
                attempt, expected = letter.attempt, 0
            if letter.number != expected:
                await self.abandon()
                yield self._error(
                    Refusal(Kind.SERVER_ERROR, f"a part of the answer was lost; ask for job {self.job_id}")
                )
                return
            expected += 1
            if letter.kind == "head":
                self.head = letter.json()
            else:
                yield letter.data

    def headers(self, end: Mapping[str, Any]) -> dict[str, str]:
        """What an answer carries: which job, which model and lane, why, and what it cost."""
        found = {**id_headers(self.request_id), "x-waybill-job": self.job_id}
        for name in ("model", "lane", "reason"):
            if end.get(name):
                found[f"x-waybill-{name}"] = str(end[name])
        if end.get("usd") is not None:
            found["x-waybill-cost-usd"] = f"{end['usd']}"
        if end.get("attempts"):
            found["x-waybill-attempts"] = str(end["attempts"])
        if self.job.reuse:
            found["x-waybill-cache"] = "hit" if end.get("reason") == "reuse" else "miss"
        return found

    def refusal(self, end: Mapping[str, Any]) -> Refusal:
        """The error for a job that ended without an answer."""
        return refusal_for(self.job_id, end)

    async def _completed(self, end: dict[str, Any]) -> dict[str, Any]:
        """The end with what all attempts cost.

        Raises:
            Refusal: The job ended without an answer.
        """
        if end["state"] != JobState.SUCCEEDED.value:
            raise self.refusal(end)
        if end.get("usd") is None and "attempts" not in end:
            end = {**end, **await self._end_from_ledger()}
        return {"attempts": end.get("attempt"), **end}

    async def _last(self, letter: Letter, *, shown: bool, is_whole: bool) -> list[bytes]:
        try:
            end = await self._completed(letter.json())
        except Refusal as refusal:
            if not shown:
                raise
            return [self._error(refusal)]
        if not self.head:
            self.head = end
        if shown and not is_whole:
            return [
                self._error(Refusal(Kind.SERVER_ERROR, f"a part of the answer was lost; ask for job {self.job_id}"))
            ]
        if shown and "tail" in end:
            return [self._with_cost(end["tail"].encode(), end)]
        if shown:
            return [
                self._error(Refusal(Kind.SERVER_ERROR, f"the end of the answer was lost; ask for job {self.job_id}"))
            ]
        if "answer" not in end:
            end = {**end, **await self._end_from_ledger()}
        return [self._with_cost(replay(self.dialect, end["answer"], self.job), end)]

    def _with_cost(self, tail: bytes, end: Mapping[str, Any]) -> bytes:
        """The terminal frames, with the cost in their usage."""
        usd = end.get("usd")
        if usd is None:
            return tail
        cutter = sse.Frames()
        out = []
        for frame in cutter.feed(tail):
            event = sse.event_of(frame)
            usage = None
            if isinstance(event, dict):
                holder = event.get("response") if "response" in event else event
                usage = holder.get("usage") if isinstance(holder, dict) else None
            if not isinstance(usage, dict):
                out.append(frame)
                continue
            usage["cost_usd"] = str(usd)
            out.append(sse.frame(event, None if self.dialect == "chat" else event.get("type")))
        return b"".join(out) + cutter.rest

    def _restart(self, letter: Letter) -> bytes:
        event = {"type": "waybill.restart", "job": self.job_id, "attempt": letter.attempt}
        return sse.frame(event, "waybill.restart")

    def _error(self, refusal: Refusal) -> bytes:
        """An error inside a stream that has begun."""
        body = error_body(refusal, _FAMILY[self.dialect], self.request_id)
        if self.dialect == "messages":
            return sse.frame(body, "error")
        if self.dialect == "responses":
            error = body["error"]
            return sse.frame({"type": "error", "sequence_number": 0, **error, "error": error}, "error")
        return sse.frame(body)

    async def _end_from_ledger(self) -> dict[str, Any]:
        """What the end letter says, from the ledger."""
        from waybill.ledger import queries

        rows = await self._client.ledger.fetch(queries.OUTCOMES, {"ids": [self.job_id], "with_payload": False})
        if not rows:
            # Postgres fell before it had the job on disk: no call was made (queries.INSERT_JOBS).
            raise Refusal(
                Kind.OVERLOADED, f"job {self.job_id} is not on the ledger any more; send it again", retry_after_s=1
            )
        row = rows[0]
        end: dict[str, Any] = {
            "state": row["state"],
            "attempt": row["calls"],
            "attempts": row["calls"],
            "code": row["error_code"],
            "error": row["error"],
        }
        if not row["unpriced"]:
            end["usd"] = str(row["usd"] or 0)
        if row["body"] is not None:
            body = json.loads(row["body"])
            end |= {"model": row["model"], "lane": f"{row['provider']}/{row['model']}/{row['service']}"}
            if "wire" in body:
                end["answer"] = body["wire"]
        return end


def refusal_for(job_id: str, end: Mapping[str, Any]) -> Refusal:
    """The error for a job that ended without an answer."""
    code = str(end.get("code") or end.get("state"))
    failed = str(end.get("failure") or "")
    kind = _KIND_OF_CODE.get(code)
    if code in ("deadline", "attempts_exhausted", "stream_broken") and failed in _KIND_OF_CODE:
        kind = _KIND_OF_CODE[failed]
    if kind is None:  # every lane failed: coming again may help
        kind = Kind.OVERLOADED
    return Refusal(
        kind,
        f"{end.get('error') or code} (job {job_id})",
        code=_CODES.get(code),
        retry_after_s=end.get("retry_after_s"),
        headers={"x-waybill-job": job_id},
    )


def replay(dialect: Dialect, answer: Mapping[str, Any], job: Job) -> bytes:
    """A whole answer as the stream it would have been."""
    from policies.dialects.carry import READERS, WRITERS
    from policies.dialects.neutral import End

    reader = READERS[dialect]()
    options = (job.wire.body.get("stream_options") or {}) if job.wire is not None else {}
    created = int(answer.get("created") or answer.get("created_at") or 0)
    answer_id = str(answer.get("id") or "").partition("_")[2] or str(answer.get("id") or "").partition("-")[2]
    writer = WRITERS[dialect](
        answer_id, str(answer.get("model")), created, include_usage=bool(options.get("include_usage"))
    )
    pieces = reader.whole(answer)
    frames: bytes = writer.start() + b"".join(writer.add(piece) for piece in pieces)
    stop, sequence = reader.stop()
    tail = writer.end(End(stop, None, sequence))
    return frames + _with_usage(dialect, tail, answer.get("usage"))


def _with_usage(dialect: Dialect, tail: bytes, usage: Any) -> bytes:
    out = []
    for frame in sse.Frames().feed(tail):
        event = sse.event_of(frame)
        holder = event.get("response", event) if isinstance(event, dict) else None
        if isinstance(holder, dict) and "usage" in holder and (dialect != "chat" or not holder.get("choices")):
            holder["usage"] = usage
            out.append(sse.frame(event, None if dialect == "chat" else event.get("type")))
        else:
            out.append(frame)
    return b"".join(out)


async def respond(request: Request, carriage: Carriage) -> Response:
    """Answer one request; a client that leaves cancels its job."""
    await carriage.submit()
    await carriage.note_retry(request.headers.get("x-stainless-retry-count", ""))
    if not carriage.job.stream:
        try:
            body, headers = await _unless_gone(request, carriage)
        finally:
            carriage.close()
        return Response(json.dumps(body), headers=headers, media_type="application/json")
    frames = carriage.frames()
    try:
        first = await _unless_gone(request, carriage, frames)
    except BaseException:
        carriage.close()
        raise
    return EventStream(carriage, frames, first)


async def _unless_gone(request: Request, carriage: Carriage, frames: AsyncIterator[bytes] | None = None) -> Any:
    """The whole answer, or the first frame; the job is cancelled when the client leaves before."""
    work = asyncio.ensure_future(carriage.whole() if frames is None else _first(frames))
    gone = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await carriage.abandon()
            raise Refusal(Kind.CONFLICT, "the client has left")
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _first(frames: AsyncIterator[bytes]) -> bytes:
    return await anext(frames, b"")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: raw ASGI, because a third of StreamingResponse's CPU is its task group."""

    def __init__(self, carriage: Carriage, frames: AsyncIterator[bytes], first: bytes) -> None:
        super().__init__()
        self._carriage, self._frames, self._first = carriage, frames, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        carriage = self._carriage
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **carriage.headers(_without_cost(carriage.head)),
        }
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        watching = asyncio.ensure_future(_left(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            await send({"type": "http.response.body", "body": self._first or HEARTBEAT, "more_body": True})
            following = asyncio.ensure_future(self._copy(send))
            await asyncio.wait([following, watching], return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                await carriage.abandon()
                return
            following.result()
        finally:
            watching.cancel()
            carriage.close()

    async def _copy(self, send: Send) -> None:
        try:
            async for frame in self._frames:
                await send({"type": "http.response.body", "body": frame or HEARTBEAT, "more_body": True})
        except Refusal as refusal:
            await send({"type": "http.response.body", "body": self._carriage._error(refusal), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


HEARTBEAT: Final = b": waybill\n\n"


def _without_cost(head: Mapping[str, Any]) -> dict[str, Any]:
    """A stream's headers leave before its cost is known; it stands in the last usage."""
    return {name: value for name, value in head.items() if name not in ("usd", "attempts")}
