"""Rows -> jobs: renders, finds the jobs that are there from before, submits the rest, 500 rows at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from producers import rowkeys
from producers.inputs import Row, Source, reading, take
from producers.template import FieldProblem, Template, as_text
from producers.window import Slot, Window
from waybill.client import AsyncClient
from waybill.contract import Job, check_text
from waybill.errors import IdempotencyConflict, InvalidJob, LedgerUnavailable
from waybill.ledger import queries
from waybill.ledger.requeue import REQUEUE

T = TypeVar("T")

_CHUNK_ROWS: Final = 500
_CHUNK_BYTES: Final = 8 * 1024 * 1024
_METADATA_CHARS: Final = 512
_YES: Final = ("true", "yes", "1")
_NO: Final = ("", "false", "no", "0")


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done with every row.

    Attributes:
        template: The prompt.
        job: The fields of a Job that all rows share.
        digest: `rowkeys.work_digest` of those.
        generation: "" or the fresh run's own mark.
        run_id: The run new jobs belong to.
        filled: Fields that must not be empty; None = all the prompt uses.
        id_column: Column with the row's own id, None without one.
        local_only_column: Column that says whether a row must stay on local models, None without one.
        max_prompt_bytes: Longest prompt that the client takes.
        retry_failed: Whether jobs that failed before get another chance.
    """

    template: Template
    job: Mapping[str, Any]
    digest: str
    generation: str
    run_id: str
    filled: tuple[str, ...] | None
    id_column: str | None
    local_only_column: str | None
    max_prompt_bytes: int
    retry_failed: bool


@dataclass(slots=True)
class Patience:
    """Waits out an outage of Postgres, and says so while it waits."""

    say: Callable[[str | None], None]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def __call__(self, ask: Callable[[], Awaitable[T]]) -> T:
        """`await ask()`, again (0.2 s doubling to 5 s) until Postgres answers. `ask` must be harmless when repeated."""
        pause_s = 0.2
        while True:
            try:
                answer = await ask()
            except LedgerUnavailable:
                self.say("Postgres does not answer, waiting for it")
                await self.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)
            else:
                if pause_s > 0.2:
                    self.say(None)
                return answer


@dataclass(frozen=True, slots=True)
class _Entry:
    mark: bytes
    digest: str = ""
    job: Job | None = None
    problem: str | None = None


def mark(row: Row) -> bytes:
    """Hash by which a row is known again when it is read a second time."""
    return hashlib.blake2b(
        repr((row.place, row.fields, row.problem)).encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()


@dataclass(slots=True)
class Feeder:
    """Fills the window. Memory: one chunk of rows."""

    client: AsyncClient
    work: Work
    source: Source
    limit: int | None
    window: Window
    patience: Patience
    submitted: int = field(default=0, init=False)
    """Jobs that were not there before."""

    async def feed(self) -> None:
        """Read the whole input and submit what is new.

        Raises:
            InvalidJob: A job that passed our checks is refused; what was accepted before stays accepted.
        """
        with reading(self.source, self.limit) as rows, closing(rowkeys.Occurrences()) as occurrences:
            # In threads: reading and rendering must not stop the collector.
            while chunk := await asyncio.to_thread(take, rows, _CHUNK_ROWS, _CHUNK_BYTES):
                entries = await asyncio.to_thread(self._entries, chunk, occurrences)
                await self.window.room_for(len(entries))
                self.window.add(await self._submit(entries))

    def _entries(self, rows: list[Row], occurrences: rowkeys.Occurrences) -> list[_Entry]:
        entries = [self._entry(row) for row in rows]
        jobs = [entry for entry in entries if entry.job is not None]
        numbers = iter(occurrences.number([entry.digest for entry in jobs]))
        return [
            entry
            if entry.job is None
            else _Entry(
                entry.mark,
                entry.digest,
                entry.job.model_copy(update={"idempotency_key": rowkeys.idempotency_key(entry.digest, next(numbers))}),
            )
            for entry in entries
        ]

    def _entry(self, row: Row) -> _Entry:
        if row.problem is not None:
            return _Entry(mark(row), problem=f"{row.place}: {row.problem}")
        try:
            return self._job_entry(row)
        except (FieldProblem, InvalidJob) as exc:
            return _Entry(mark(row), problem=f"{row.place}: {exc}")

    def _job_entry(self, row: Row) -> _Entry:
        work = self.work
        prompt = work.template.render(row.fields, filled=work.filled)
        try:
            check_text(prompt)
        except ValueError as exc:
            raise FieldProblem(str(exc)) from None
        shared = (work.job.get("system") or "", work.job.get("context") or "")
        size = sum(len(text.encode()) for text in (prompt, *shared))
        if size > work.max_prompt_bytes:
            raise FieldProblem(
                f"the prompt has {size:,} bytes, the limit is {work.max_prompt_bytes:,} (WAYBILL_MAX_PAYLOAD_BYTES);"
                " split the document"
            )
        metadata = {"row": row.place[:_METADATA_CHARS], "prompt_version": work.template.version}
        row_id = None
        if work.id_column is not None:
            row_id = as_text(row.fields.get(work.id_column))
            metadata["id"] = row_id[:_METADATA_CHARS]
        local_only = bool(work.job.get("local_only")) or self._is_local_only(row)
        fields = {**work.job, "prompt": prompt, "metadata": metadata, "local_only": local_only}
        if local_only:
            fields["quality"] = None
        digest = rowkeys.row_digest(
            work.digest, prompt, row_id=row_id, local_only=local_only, generation=work.generation
        )
        return _Entry(mark(row), digest, self.client.make_job(**fields))

    def _is_local_only(self, row: Row) -> bool:
        column = self.work.local_only_column
        if column is None:
            return False
        text = as_text(row.fields.get(column)).strip().casefold()
        if text not in _YES + _NO:
            # A guess would send somebody's private text away.
            raise FieldProblem(f"`{column}` is {text[:40]!r}; write true or false")
        return text in _YES

    async def _submit(self, entries: list[_Entry]) -> list[Slot]:
        """Slots of a chunk, its jobs found or submitted."""
        jobs = [entry.job for entry in entries if entry.job is not None]
        ids, final = await self._job_ids(jobs)
        slots = []
        for entry in entries:
            if entry.job is None:
                slots.append(Slot(entry.mark, None, entry.problem))
            else:
                key = str(entry.job.idempotency_key)
                slots.append(Slot(entry.mark, ids[key], was_final=key in final))
        return slots

    async def _job_ids(self, jobs: list[Job]) -> tuple[dict[str, str], set[str]]:
        """Job ids by key, and the keys whose jobs had ended before."""
        while True:
            ids, final = await self._earlier(jobs)
            new = [job for job in jobs if job.idempotency_key not in ids]
            try:
                new_ids = await self.patience(lambda new=new: self.client.submit_many(new, run_id=self.work.run_id))  # type: ignore[misc]  # mypy cannot type a default in a lambda
            except IdempotencyConflict:
                # The same row from another file, or with another deadline, submitted this very moment: it is there now.
                continue
            self.submitted += len(new)
            ids.update(zip((str(job.idempotency_key) for job in new), new_ids, strict=True))
            return ids, final

    async def _earlier(self, jobs: list[Job]) -> tuple[dict[str, str], set[str]]:
        if not jobs:
            return {}, set()
        asked = {"tenants": [job.tenant for job in jobs], "keys": [job.idempotency_key for job in jobs]}
        rows = await self.patience(lambda: self.client.ledger.fetch(queries.JOBS_BY_KEY, asked))
        ids = {row["idempotency_key"]: row["id"] for row in rows}
        final = {row["idempotency_key"] for row in rows if row["state"] in ("succeeded", "failed", "dead", "cancelled")}
        again = [row for row in rows if self.work.retry_failed and row["state"] in ("failed", "dead")]
        if again:
            await self._requeue([row["id"] for row in again])
            final -= {row["idempotency_key"] for row in again}
        return ids, final

    async def _requeue(self, job_ids: list[str]) -> None:
        asked = {"ids": job_ids, "run_id": self.work.run_id, "deadline_s": self.work.job.get("deadline_s")}
        rows = await self.patience(lambda: self.client.ledger.fetch(REQUEUE, asked))
        await self.client._ring([row["id"] for row in rows])
