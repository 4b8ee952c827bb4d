"""Ended jobs -> rows of the output, in input order, and the figures of the run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from producers.feeder import Patience, mark
from producers.inputs import Row, Source, take
from producers.outputs import Finished, Output
from producers.progress import Pace, Standing
from producers.refusal import Refused
from producers.report import Totals, read_totals
from producers.window import Slot, Window
from waybill.client import AsyncClient
from waybill.contract import lane_name
from waybill.ledger import reports

_ASK_JOBS: Final = 1000
_WRITE_ROWS: Final = 100
_WRITE_BYTES: Final = 32 * 1024 * 1024


@dataclass(slots=True)
class Counts:
    """Rows by what became of them."""

    succeeded: int = 0
    failed: int = 0
    invalid: int = 0
    adopted: int = 0
    written: int = 0
    usd: Decimal = Decimal(0)
    adopted_usd: Decimal = Decimal(0)


@dataclass(slots=True)
class Collector:
    """Empties the window into the output."""

    client: AsyncClient
    source: Source
    rows: Iterator[Row]
    """A second pass over the input: the columns of rows that wait for their answers are not kept in memory."""
    window: Window
    output: Output
    patience: Patience
    typed: bool
    """Whether answers are data (a schema or labels were given) or text."""
    total: int
    show: Callable[[Standing], None]
    counts: Counts = field(default_factory=Counts, init=False)
    totals: Totals = field(default_factory=Totals, init=False)
    hint: str | None = field(default=None, init=False)
    _pace: Pace = field(default_factory=Pace, init=False, repr=False)
    _moved_s: float = field(default_factory=time.monotonic, init=False, repr=False)

    async def collect(self, feeding: asyncio.Task[None], stop: asyncio.Event) -> bool:
        """Write rows until all are written (True) or `stop` is set (False: what is done is written, with gaps).

        Raises:
            Refused: The output takes no more, or the input changed meanwhile.
        """
        pause_s = 0.05
        while True:
            began_s = time.monotonic()
            found = await self._ask()
            asking_s = time.monotonic() - began_s
            await self._write_ready()
            self.tell()
            if feeding.done():
                feeding.result()
                if not len(self.window):
                    return True
            if stop.is_set():
                await self._write_with_gaps()
                return False
            # Asking is never more than a fifth of the time, and never more often than 20 times a second.
            pause_s = 0.05 if found else min(0.5, pause_s * 1.5)
            await self._rest(max(pause_s, 4 * asking_s), feeding, stop)

    async def _rest(self, pause_s: float, feeding: asyncio.Task[None], stop: asyncio.Event) -> None:
        self.window.filled.clear()
        if not self.window.waiting and not feeding.done():
            stopped, filled = asyncio.create_task(stop.wait()), asyncio.create_task(self.window.filled.wait())
            await asyncio.wait({feeding, stopped, filled}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            filled.cancel()
            return
        try:
            await asyncio.wait_for(stop.wait(), pause_s)
        except TimeoutError:
            return

    async def _ask(self) -> int:
        """Find out which jobs have ended; how many."""
        found = 0
        waiting = self.window.open_ids()
        for start in range(0, len(waiting), _ASK_JOBS):
            part = {"ids": waiting[start : start + _ASK_JOBS]}
            for row in await self.patience(lambda part=part: self.client.ledger.fetch(reports.FINISHED, part)):  # type: ignore[misc]  # mypy cannot type a default in a lambda
                self._count(self.window.finish(row["id"], row["state"]), row["usd"] or Decimal(0))
                found += 1
        if found:
            self._moved_s = time.monotonic()
        return found

    def _count(self, slot: Slot, usd: Decimal) -> None:
        if slot.state == "succeeded":
            self.counts.succeeded += 1
        else:
            self.counts.failed += 1
        self.counts.usd += usd
        if slot.was_final:
            self.counts.adopted += 1
            self.counts.adopted_usd += usd

    async def _write_ready(self) -> None:
        while slots := self.window.ready(_WRITE_ROWS):
            await self._write(slots)

    async def _write_with_gaps(self) -> None:
        while slots := self.window.head(_WRITE_ROWS):
            await self._write(slots)

    async def _write(self, slots: Sequence[Slot]) -> None:
        """Write the rows at the head of the window, or as many of them as fit into memory at once."""
        rows = await asyncio.to_thread(take, self.rows, len(slots), _WRITE_BYTES)
        slots = slots[: len(rows)]
        if not rows or any(mark(row) != slot.mark for row, slot in zip(rows, slots, strict=True)):
            raise Refused(
                f"INPUT {self.source.path}: changed while the run was reading it; give the same command again, rows"
                " that are done cost nothing"
            )
        ids = [slot.job_id for slot in slots if slot.job_id is not None and slot.state is not None]
        answers = await self._answers(ids)
        finished = [self._finished(row, slot, answers) for row, slot in zip(rows, slots, strict=True) if slot.is_ready]
        self.output.write(finished)
        self.counts.written += len(finished)
        self.counts.invalid += sum(slot.job_id is None for slot in slots)
        self.window.drop(len(slots))

    async def _answers(self, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        if not ids:
            return {}
        rows = await self.patience(lambda: self.client.ledger.fetch(reports.ANSWERS, {"ids": list(ids)}))
        self.totals.merge(await self.patience(lambda: read_totals(self.client, job_ids=ids)))
        return {row["id"]: dict(row) for row in rows}

    def _finished(self, row: Row, slot: Slot, answers: Mapping[str, Mapping[str, Any]]) -> Finished:
        if slot.job_id is None:
            return Finished(row.fields, "invalid", error=slot.problem)
        return finished_row(row.fields, answers[slot.job_id], typed=self.typed)

    def tell(self) -> None:
        """Show where the run stands."""
        counts, now_s = self.counts, time.monotonic()
        self.show(
            Standing(
                total=self.total,
                succeeded=counts.succeeded,
                failed=counts.failed + counts.invalid,
                adopted=counts.adopted,
                waiting=self.window.waiting,
                usd=counts.usd - counts.adopted_usd,
                rate=self._pace.rate(now_s, counts.succeeded + counts.failed - counts.adopted),
                idle_s=now_s - self._moved_s,
                hint=self.hint,
            )
        )


def finished_row(fields: Mapping[str, Any], job: Mapping[str, Any], *, typed: bool) -> Finished:
    """A row of the output from a row of `reports.ANSWERS`.

    Args:
        fields: The input's columns.
        job: As the ledger has it.
        typed: Whether the answer is data (an object, a label) or text.
    """
    answer, error = None, None
    if job["body"] is not None:
        body = json.loads(job["body"])
        answer = body["data"] if typed else body["text"]
    else:
        error = ": ".join(" ".join(str(part).split()) for part in (job["error_code"], job["error"]) if part)
    model = job["served_model"] or job["model"]
    return Finished(
        fields=fields,
        status=job["state"],
        answer=answer,
        error=error,
        model=model,
        lane=None if job["model"] is None else lane_name(job["provider"], job["model"], job["service"]),
        attempts=job["calls"],
        usd=None if job["unpriced"] else job["usd"] or Decimal(0),
        tokens_in=int(job["tokens_in"] or 0),
        tokens_out=int(job["tokens_out"] or 0),
        reason=job["reason"],
        job=job["id"],
    )
