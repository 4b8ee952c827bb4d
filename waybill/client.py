"""What a backend service calls: submit jobs, wait for results, stream answers, cancel. Sync and async.

`AsyncClient` is the implementation; `Client` runs it on one event loop in a thread of its own. A job is accepted once
`submit` returns: its row is committed in Postgres, and ringing the dispatcher is only a hint that the fleet's reconciler
repeats when it gets lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from pydantic import ValidationError

from waybill import trace
from waybill.bells import ring_quickly
from waybill.contract import FINAL_STATES, Job, JobState, Result, Usage, lane_name, new_job_id
from waybill.errors import (
    BrokerUnavailable,
    IdempotencyConflict,
    InvalidFeedback,
    InvalidJob,
    JobCancelled,
    JobDead,
    JobError,
    JobFailed,
    ResultTimeout,
    StreamBroken,
)
from waybill.names import CANCEL_CHANNEL, DISPATCH_QUEUE, done_channel
from waybill.question import question, stable_part
from waybill.redislink import connect_async
from waybill.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from waybill.broker import Broker
    from waybill.ledger.engine import Ledger, Row

T = TypeVar("T")

_INSERT_CHUNK = 500
_MOST_NOTE_CHARS = 2000
_EXAMPLE_ID = "01a20ab6-a5fe-7770-990b-93f0ca91497e"
_POLL_S = 2.0
"""How often a waiting call looks at the ledger although no notice came (a notice can be lost)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job in a final state: either `result` or `error` is set.

    Attributes:
        job_id: The job.
        seq: Its position in its run, None outside a run.
        lane: Lane of the last attempt, None when no call was made.
        attempts: Calls made.
        usd: What they cost together; None when one has no known price.
    """

    job_id: str
    seq: int | None
    state: JobState
    result: Result | None
    error: JobError | None
    lane: str | None
    attempts: int
    usd: Any


class AsyncClient:
    """The client for asyncio programs. Use it as a context manager, or call `close`."""

    def __init__(
        self, database_url: str, redis_url: str, *, broker_url: str | None = None, tenant: str = "default"
    ) -> None:
        """Connects when first used.

        Args:
            database_url: The ledger, postgresql+psycopg://user:password@host/database.
            redis_url: redis://:password@host:port/db.
            broker_url: Celery's broker where it is not Redis.
            tenant: Whose jobs these are, where a job does not say.
        """
        self._database_url, self._redis_url = database_url, redis_url
        self._broker_url = broker_url or redis_url
        self._tenant = tenant
        self._ledger_: Ledger | None = None
        self._redis_: Redis | None = None
        self._broker_: Broker | None = None
        self._max_payload_bytes = Settings.model_fields["max_payload_bytes"].default

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, tenant: str = "default") -> Self:
        """A client for the services that WAYBILL_DATABASE_URL and WAYBILL_REDIS_URL name."""
        settings = Settings.from_env(environ)
        client = cls(
            settings.require_database_url(),
            settings.require_redis_url(),
            broker_url=settings.require_broker_url(),
            tenant=tenant,
        )
        client._max_payload_bytes = settings.max_payload_bytes
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        if self._ledger_ is not None:
            await self._ledger_.close()
        if self._redis_ is not None:
            await self._redis_.aclose()
        if self._broker_ is not None:
            await asyncio.to_thread(self._broker_.close)
        self._ledger_ = self._redis_ = self._broker_ = None

    @property
    def ledger(self) -> Ledger:
        """The connection pool to the ledger (for our own programs; not part of the public interface)."""
        if self._ledger_ is None:
            from waybill.ledger.engine import Ledger

            self._ledger_ = Ledger(self._database_url)
        return self._ledger_

    @property
    def _redis(self) -> Redis:
        if self._redis_ is None:
            self._redis_ = connect_async(self._redis_url, socket_connect_timeout=5, health_check_interval=10)
        return self._redis_

    @property
    def _broker(self) -> Broker:
        if self._broker_ is None:
            from waybill.broker import Broker

            self._broker_ = Broker(self._broker_url)
        return self._broker_

    # --- submit -------------------------------------------------------------------------------------------------------

    async def submit(self, job: Job | None = None, /, **fields: Any) -> str:
        """Accept one job; give a `Job` or its fields.

        Returns:
            The job's id. With an idempotency key that was used before for the same request: the earlier job's id.

        Raises:
            InvalidJob: A field is wrong; nothing was accepted.
            IdempotencyConflict: The key belongs to another request.
            LedgerUnavailable: Postgres does not answer; submit again (with an idempotency key nothing runs twice).
        """
        return (await self.submit_many([job if job is not None else self.make_job(**fields)]))[0]

    def make_job(self, **fields: Any) -> Job:
        """A checked Job of this client's tenant.

        Raises:
            InvalidJob: With the field's name and what is wrong with it.
        """
        fields.setdefault("tenant", self._tenant)
        try:
            return Job(**fields)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            problem = first["msg"].removeprefix("Value error, ")
            raise InvalidJob(f"{where}: {problem}" if where else problem) from None

    async def submit_many(
        self,
        jobs: Sequence[Job],
        *,
        run_id: str | None = None,
        seqs: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        reply_to: str | None = None,
    ) -> list[str]:
        """Accept many jobs; all ids in the order given.

        Args:
            jobs: Any number; they are stored 500 at a time, each such part entirely or not at all.
            run_id: The run they belong to, None outside a run.
            seqs: Their positions in the run.
            ids: New ids to use (`new_job_id`); None = made here.
            reply_to: The gateway process that waits for the answers (`waybill.mail`). It has told its clients nothing yet:
                until a worker has claimed the jobs they are lost if Postgres falls.

        Raises:
            InvalidJob, IdempotencyConflict, LedgerUnavailable: As `submit`; parts before the failing one are accepted.
        """
        accepted: list[str] = []
        for start in range(0, len(jobs), _INSERT_CHUNK):
            part = jobs[start : start + _INSERT_CHUNK]
            part_seqs = None if seqs is None else seqs[start : start + _INSERT_CHUNK]
            part_ids = None if ids is None else ids[start : start + _INSERT_CHUNK]
            accepted += await self._submit_part(part, run_id, part_seqs, part_ids, reply_to)
        return accepted

    async def _submit_part(
        self,
        jobs: Sequence[Job],
        run_id: str | None,
        seqs: Sequence[int] | None,
        given: Sequence[str] | None,
        reply_to: str | None,
    ) -> list[str]:
        from waybill.ledger import queries

        ids = list(given) if given is not None else [fresh_job_id() for _ in jobs]
        payloads = [self._checked_payload(job) for job in jobs]
        hashes = [
            hashlib.sha256((payload if job.wire is None else job.fingerprint()).encode()).hexdigest()
            for job, payload in zip(jobs, payloads, strict=True)
        ]
        stable = [stable_part(job) for job in jobs]
        inserted = await self.ledger.fetch(
            queries.INSERT_JOBS,
            {
                "ids": ids,
                "run_ids": [run_id] * len(jobs),
                "seqs": [None] * len(jobs) if seqs is None else list(seqs),
                "tenants": [job.tenant for job in jobs],
                "intents": [job.intent for job in jobs],
                "priorities": [job.priority.value for job in jobs],
                "keys": [job.idempotency_key for job in jobs],
                "hashes": hashes,
                "bytes": [prompt_bytes(job) for job in jobs],
                "max_outputs": [job.max_output_tokens for job in jobs],
                "models": [job.model for job in jobs],
                "local_onlys": [job.local_only for job in jobs],
                "qualities": [job.quality for job in jobs],
                "needs": [",".join(_needs(job)) for job in jobs],
                "streams": [job.stream for job in jobs],
                "deadlines": [job.deadline_s for job in jobs],
                "dues": [job.due_s for job in jobs],
                "payloads": payloads,
                "key_ids": [job.key_id for job in jobs],
                "questions": [question(job) for job in jobs],
                "prefixes": [part.key if part else None for part in stable],
                "prefix_bytes": [part.bytes if part else 0 for part in stable],
                "reply_tos": [reply_to] * len(jobs),
                "traceparent": trace.current(),
            },
        )
        new = {row["id"] for row in inserted}
        ringing = [job_id for job_id in ids if job_id in new]
        if reply_to is None:
            await self._ring(ringing)
        elif ringing:
            await ring_quickly(self._redis, DISPATCH_QUEUE, ringing)
        if len(new) < len(ids):
            await self._adopt_earlier(jobs, ids, hashes, new)
        return ids

    def _checked_payload(self, job: Job) -> str:
        size = prompt_bytes(job)
        if size > self._max_payload_bytes:
            raise InvalidJob(
                f"prompt: {size:,} bytes are more than the limit of {self._max_payload_bytes:,}"
                " (WAYBILL_MAX_PAYLOAD_BYTES); split the document"
            )
        return job.payload()

    async def _adopt_earlier(self, jobs: Sequence[Job], ids: list[str], hashes: list[str], new: set[str]) -> None:
        """Replace the ids of jobs that were there before by the earlier ids."""
        from waybill.ledger import queries

        again = [i for i, job_id in enumerate(ids) if job_id not in new]
        rows = await self.ledger.fetch(
            queries.JOBS_BY_KEY,
            {"tenants": [jobs[i].tenant for i in again], "keys": [jobs[i].idempotency_key for i in again]},
        )
        earlier = {(row["tenant"], row["idempotency_key"]): row for row in rows}
        for i in again:
            row = earlier.get((jobs[i].tenant, str(jobs[i].idempotency_key)))
            if row is None:
                raise InvalidJob(f"job {i} of this call takes a position that its run has already filled")
            if row["request_hash"] != hashes[i]:
                raise IdempotencyConflict(
                    f"idempotency_key {jobs[i].idempotency_key!r} was used before for another request (job {row['id']})"
                )
            ids[i] = row["id"]

    async def _ring(self, job_ids: Sequence[str]) -> None:
        from waybill.broker import dispatch_doorbells

        if not job_ids:
            return
        try:
            await asyncio.to_thread(self._broker.ring, dispatch_doorbells(job_ids))
        except BrokerUnavailable:
            return  # The jobs are accepted all the same: the row is the outbox and the reconciler rings again.

    # --- results ------------------------------------------------------------------------------------------------------

    async def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        """Wait for a job's answer.

        Args:
            job_id: As `submit` returned it.
            timeout_s: None waits for ever.

        Raises:
            JobFailed, JobDead, JobCancelled: It ended without an answer.
            ResultTimeout: It is still going on.
            LookupError: No such job.
        """
        outcome = await self._wait(job_id, timeout_s)
        if outcome.result is None:
            assert outcome.error is not None
            raise outcome.error
        return outcome.result

    async def results(self, job_ids: Iterable[str], timeout_s: float | None = None) -> AsyncIterator[Outcome]:
        """Yield the outcomes of many jobs as they come, each once.

        Raises:
            ResultTimeout: Not all came in time.
        """
        open_ids = dict.fromkeys(job_ids)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.02
        while open_ids:
            found = 0
            for part in _parts(list(open_ids), 1000):
                for outcome in await self.outcomes(part):
                    open_ids.pop(outcome.job_id, None)
                    found += 1
                    yield outcome
            if not open_ids:
                return
            if end is not None and time.monotonic() >= end:
                raise ResultTimeout(next(iter(open_ids)), timeout_s or 0.0)
            pause_s = 0.05 if found else min(0.5, pause_s * 1.5)
            await asyncio.sleep(pause_s)

    async def outcomes(self, job_ids: Sequence[str], *, with_payload: bool = True) -> list[Outcome]:
        """Those of the jobs that are final, without waiting."""
        from waybill.ledger import queries

        rows = await self.ledger.fetch(queries.OUTCOMES, {"ids": list(job_ids), "with_payload": with_payload})
        return [_outcome(row) for row in rows]

    async def _wait(self, job_id: str, timeout_s: float | None) -> Outcome:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        outcome = await self._final(job_id)
        if outcome is not None:
            return outcome
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            listening = await _quietly(pubsub.subscribe(done_channel(job_id)))
            while True:
                outcome = await self._final(job_id)
                if outcome is not None:
                    return outcome
                left = _POLL_S if end is None else min(_POLL_S, end - time.monotonic())
                if left <= 0:
                    raise ResultTimeout(job_id, timeout_s or 0.0)
                if not (listening and await _quietly(pubsub.get_message(timeout=left))):
                    await asyncio.sleep(0 if listening else min(left, 0.2))
        finally:
            await _quietly(pubsub.aclose())  # type: ignore[no-untyped-call]

    async def _final(self, job_id: str) -> Outcome | None:
        from waybill.ledger import queries

        found = await self.outcomes([job_id])
        if found:
            return found[0]
        if not await self.ledger.fetch(queries.JOB_STATES, {"ids": [job_id]}):
            raise LookupError(f"no job {job_id} in this ledger")
        return None

    async def stream(self, job: Job | None = None, /, **fields: Any) -> AsyncIterator[str]:
        """Submit a job and yield its answer piece by piece, as the model makes it.

        When the iterator ends, the whole answer was delivered and is in the ledger.

        Raises:
            JobFailed, JobDead, JobCancelled: It ended without an answer.
            StreamBroken: Pieces came, then the model failed; what was yielded is not the answer.
        """
        from waybill.streaming import read_deltas

        job = job if job is not None else self.make_job(**fields)
        job_id = await self.submit(job.model_copy(update={"stream": True}))
        shown: list[str] = []
        async for delta in read_deltas(self._redis, job_id):
            if delta is None:
                if await self._final(job_id) is not None:
                    break  # The end entry was lost with Redis; the ledger knows.
                continue
            shown.append(delta)
            yield delta
        outcome = await self._wait(job_id, timeout_s=30)
        if outcome.result is None:
            assert outcome.error is not None
            if shown:
                raise StreamBroken(str(outcome.error)) from outcome.error
            raise outcome.error
        text, seen = outcome.result.text, "".join(shown)
        if text != seen:
            if not text.startswith(seen):
                raise StreamBroken(
                    f"job {job_id}: the pieces differ from the answer in the ledger; read it with result()"
                )
            yield text[len(seen) :]

    async def cancel(self, *job_ids: str) -> dict[str, JobState]:
        """Stop jobs: those without a call under way at once, the others within a heartbeat of their worker.

        Returns:
            The states of those that were not final yet; `running` means the call is being stopped.
        """
        from waybill.ledger import queries

        rows = await self.ledger.fetch(queries.CANCEL, {"ids": list(job_ids)})
        found = {row["id"]: JobState(row["state"]) for row in rows}
        running = [job_id for job_id, state in found.items() if state is JobState.RUNNING]
        for part in _parts(running, 1000):  # their workers find out by themselves, but a call costs money meanwhile
            await _quietly(self._redis.publish(CANCEL_CHANNEL, " ".join(part)))
        return found

    async def feedback(self, job_id: str, score: float, *, note: str | None = None, tenant: str | None = None) -> str:
        """Say how good a job's answer was; this is what routing learns from. Saying it again replaces the earlier score.

        Args:
            job_id: A job that succeeded.
            score: 0 (of no use) to 1 (right).
            note: Why, for people; kept in the ledger, never sent anywhere.
            tenant: Only a job of this tenant takes the score; None = whoever's it is.

        Returns:
            The model that the score counts for.

        Raises:
            InvalidFeedback: The score is out of range, or the job has no answer.
            LookupError: No such job, or it is another tenant's.
        """
        from waybill.ledger import grades

        if not _is_share(score):
            raise InvalidFeedback(f"score {score!r} is not a number from 0 (of no use) to 1 (right)")
        if note is not None and len(note) > _MOST_NOTE_CHARS:
            raise InvalidFeedback(f"the note has {len(note):,} characters; at most {_MOST_NOTE_CHARS:,} are kept")
        parameters = {"job": _job_id(job_id), "score": float(score), "note": _printable_note(note), "tenant": tenant}
        rows = await self.ledger.fetch(grades.FEEDBACK, parameters)
        if rows:
            return str(rows[0]["model"])
        found = await self.ledger.fetch(grades.ANSWERED, {"job": _job_id(job_id), "tenant": tenant})
        if not found:
            raise LookupError(f"no job {job_id} in this ledger")
        raise InvalidFeedback(f"job {job_id} is {found[0]['state']} and has no answer that could be scored")

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Where the jobs are now; unknown ids are left out."""
        from waybill.ledger import queries

        rows = await self.ledger.fetch(queries.JOB_STATES, {"ids": list(job_ids)})
        return {row["id"]: JobState(row["state"]) for row in rows}


class Client:
    """The client for programs without an event loop. Thread-safe. Use it as a context manager, or call `close`."""

    def __init__(
        self, database_url: str, redis_url: str, *, broker_url: str | None = None, tenant: str = "default"
    ) -> None:
        """As `AsyncClient`."""
        self._start(AsyncClient(database_url, redis_url, broker_url=broker_url, tenant=tenant))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, tenant: str = "default") -> Self:
        """A client for the services that WAYBILL_DATABASE_URL and WAYBILL_REDIS_URL name."""
        client = cls.__new__(cls)
        client._start(AsyncClient.from_env(environ, tenant=tenant))
        return client

    def _start(self, implementation: AsyncClient) -> None:
        self._async = implementation
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="waybill-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back connections and the thread. Calling it twice is fine."""
        if self._loop.is_closed():
            return
        self._run(self._async.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> tuple[T] | None:
            try:
                return (await anext(source),)
            except StopAsyncIteration:
                return None

        try:
            while (item := self._run(following())) is not None:
                yield item[0]
        finally:
            close = getattr(source, "aclose", None)
            if close is not None and not self._loop.is_closed():
                self._run(close())

    def make_job(self, **fields: Any) -> Job:
        """As `AsyncClient.make_job`."""
        return self._async.make_job(**fields)

    def submit(self, job: Job | None = None, /, **fields: Any) -> str:
        """As `AsyncClient.submit`."""
        return self._run(self._async.submit(job, **fields))

    def submit_many(
        self, jobs: Sequence[Job], *, run_id: str | None = None, seqs: Sequence[int] | None = None
    ) -> list[str]:
        """As `AsyncClient.submit_many`."""
        return self._run(self._async.submit_many(jobs, run_id=run_id, seqs=seqs))

    def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        """As `AsyncClient.result`."""
        return self._run(self._async.result(job_id, timeout_s))

    def results(self, job_ids: Iterable[str], timeout_s: float | None = None) -> Iterator[Outcome]:
        """As `AsyncClient.results`."""
        return self._iterate(self._async.results(job_ids, timeout_s))

    def stream(self, job: Job | None = None, /, **fields: Any) -> Iterator[str]:
        """As `AsyncClient.stream`."""
        return self._iterate(self._async.stream(job, **fields))

    def cancel(self, *job_ids: str) -> dict[str, JobState]:
        """As `AsyncClient.cancel`."""
        return self._run(self._async.cancel(*job_ids))

    def feedback(self, job_id: str, score: float, *, note: str | None = None, tenant: str | None = None) -> str:
        """As `AsyncClient.feedback`."""
        return self._run(self._async.feedback(job_id, score, note=note, tenant=tenant))

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """As `AsyncClient.states`."""
        return self._run(self._async.states(job_ids))


def fresh_job_id() -> str:
    """An id for a job that is about to be submitted."""
    return new_job_id(time.time_ns() // 1_000_000, os.urandom(10))


def prompt_bytes(job: Job) -> int:
    """UTF-8 bytes of all prompt texts of a job."""
    if job.wire is not None:
        return job.wire.text_bytes
    texts = [job.prompt, job.system or "", job.context or "", *(message.content for message in job.messages)]
    return sum(len(text.encode()) for text in texts)


def _printable_note(note: str | None) -> str | None:
    """A note as the ledger keeps it: NUL and half characters, which Postgres cannot store, are written out."""
    return None if note is None else note.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _job_id(text: str) -> str:
    """A job's id in its usual form.

    Raises:
        LookupError: It is no id, so there is no such job.
    """
    try:
        return str(UUID(text))
    except (ValueError, TypeError, AttributeError):
        raise LookupError(f"no job {text!r} in this ledger: a job's id looks like {_EXAMPLE_ID}") from None


def _needs(job: Job) -> list[str]:
    own = ["json_schema"] * (job.json_schema is not None) + ["labels"] * bool(job.labels)
    return own if job.wire is None else own + list(job.wire.needs)


def _parts(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def _quietly(work: Awaitable[Any]) -> bool:
    """Await something that Redis may fail at; whether it went well. The ledger is asked either way."""
    from redis.exceptions import RedisError

    try:
        await work
    except (RedisError, OSError):
        return False
    return True


_ERRORS: dict[JobState, type[JobError]] = {JobState.DEAD: JobDead, JobState.CANCELLED: JobCancelled}


def _outcome(row: Row) -> Outcome:
    state = JobState(row["state"])
    assert state in FINAL_STATES
    usd = None if row["unpriced"] else (row["usd"] if row["usd"] is not None else 0)
    result: Result | None = None
    error: JobError | None = None
    if state is JobState.SUCCEEDED and row["body"] is None:
        error = JobFailed(
            row["id"], "purged", "it had an answer, which was deleted since (`waybill retention`, `waybill erase`)"
        )
    elif state is JobState.SUCCEEDED:
        result = _result(row, usd)
    else:
        error = _ERRORS.get(state, JobFailed)(row["id"], row["error_code"] or state.value, row["error"] or state.value)
    return Outcome(
        job_id=row["id"],
        seq=row["seq"],
        state=state,
        result=result,
        error=error,
        lane=row["last_lane"],
        attempts=row["calls"],
        usd=usd,
    )


def _result(row: Row, usd: Any) -> Result:
    body = json.loads(row["body"])
    payload = json.loads(row["payload"]) if row["payload"] else {}
    finished_at: datetime = row["finished_at"]
    return Result(
        job_id=row["id"],
        text=body["text"],
        data=body["data"],
        model=row["served_model"],
        lane=lane_name(row["provider"], row["model"], row["service"]),
        reason=row["reason"],
        attempts=row["calls"],
        usd=usd,
        usage=Usage(
            input_tokens=row["input_tokens"] or 0,
            output_tokens=row["output_tokens"] or 0,
            cache_read_tokens=row["cache_read_tokens"] or 0,
            cache_write_tokens=row["cache_write_tokens"] or 0,
            cache_write_1h_tokens=row["cache_write_1h_tokens"] or 0,
            thinking_tokens=row["thinking_tokens"] or 0,
        ),
        finished_at=finished_at,
        metadata=payload.get("metadata", {}),
    )
