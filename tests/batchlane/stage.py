"""A fleet over a sandbox whose clock can be moved: jobs with a day's time, batch pollers to kill, and the books of both."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg.rows import dict_row

from sandbox.testing import Running, running
from tests.fleet import RunningFleet, running_fleet
from waybill import Client, Job
from waybill.contract import Priority
from waybill.names import HEALTH_KEY
from workers.runtime import SHIPPED_POLICY

# What is charged may differ by the last digit of the ledger's twelve.
MICRO = Decimal("0.000001")
QUICK = {"WAYBILL_LEASE_S": "3", "WAYBILL_DRAIN_S": "1", "WAYBILL_CALL_TIMEOUT_S": "10"}
RULES = """
[lanes]
services = ["{service}"]
[batches]
linger_s = 0.5
poll_s = 0.3
lost_after_s = 2
max_rows = {max_rows}
{more}
"""
MODELS = ("claude-haiku-5-5", "gpt-6-luna")


@dataclass
class Stage:
    """What a test works with."""

    client: Client
    sandbox: Running
    fleet: RunningFleet
    database_url: str
    redis_url: str
    ids: list[str] = field(default_factory=list)
    acts: int = 0

    def begin(self) -> None:
        """A new act: no jobs, no batches, nothing on the bill."""
        left = [str(row["id"]) for row in self.rows("select id from jobs where finished_at is null")]
        if left:  # the act before failed
            self.client.cancel(*left)
        self.sandbox.reset()
        self.sandbox.batch_pace(turnaround_s=3600, enqueued_tokens=2_000_000_000)
        self.rows("delete from provider_batch_rows returning job_id")
        self.rows("delete from provider_batches returning id")
        with redis.Redis.from_url(self.redis_url) as connection:
            connection.delete(HEALTH_KEY)
        self.ids.clear()
        self.acts += 1

    def submit(self, count: int, *, models: Sequence[str] = MODELS, **fields: Any) -> list[str]:
        """Hand over jobs with a day's time, the models in turn."""
        first = len(self.ids)
        jobs = [
            Job(
                **{
                    "intent": "summarization",
                    "prompt": f"Sum up note {n} of act {self.acts}.",
                    "model": models[n % len(models)],
                    "priority": Priority.BATCH,
                    "latency": "day",
                    **fields,
                    **({"prompt": fields["prompt"].format(n=n)} if "prompt" in fields else {}),
                }
            )
            for n in range(first, first + count)
        ]
        ids = self.client.submit_many(jobs)
        self.ids += ids
        return ids

    def rows(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        """Ask the ledger."""
        plain = self.database_url.replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(sql, params or None).fetchall()

    def states(self) -> Counter[str]:
        """How many of the jobs are in which state."""
        rows = self.rows("select state from jobs where id = any(%s::uuid[])", self.ids)
        return Counter(row["state"] for row in rows)

    def until(self, happened: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for it; what is known is in the message if it does not happen."""
        end = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > end:
                batches = self.rows(
                    "select state, rows, tries, provider, error from provider_batches order by gathered_at"
                )
                logs = "\n".join(f"--- {name}\n{self.fleet.log(name)[-1500:]}" for name in ("batch", "control"))
                raise AssertionError(f"{what} did not happen: {dict(self.states())}\n{batches}\n{logs}")
            time.sleep(0.05)

    def until_sent(self, rows: int, timeout_s: float = 90) -> None:
        """Wait until that many rows are at the providers."""
        sql = "select coalesce(sum(rows), 0) as n from provider_batches where state in ('sent', 'ended')"
        self.until(lambda: self.rows(sql)[0]["n"] >= rows, timeout_s, f"{rows} rows at the providers")

    def until_final(self, timeout_s: float = 120) -> None:
        """Wait until all jobs have ended."""
        final = ("succeeded", "failed", "cancelled", "dead")
        self.until(
            lambda: sum(self.states()[state] for state in final) == len(self.ids), timeout_s, "the end of all jobs"
        )

    def until_books_closed(self, timeout_s: float = 90) -> None:
        """Wait until every batch has ended, too: then every charge is known."""
        open_batches = "select count(*) as n from provider_batches where state <> 'ended'"
        self.until(lambda: self.rows(open_batches)[0]["n"] == 0, timeout_s, "the end of all batches")

    def attempts(self) -> list[dict[str, Any]]:
        """All attempts of the jobs."""
        return self.rows("select * from attempts where job_id = any(%s::uuid[]) order by job_id, number", self.ids)

    def check(self, *, estimated_may_differ: bool = False) -> None:
        """Every job one result, every charge on the ledger once, and both bills the same."""
        results = self.rows(
            "select job_id, count(*) as n from results where job_id = any(%s::uuid[]) group by 1", self.ids
        )
        succeeded = self.states()["succeeded"]
        assert len(results) == succeeded
        assert all(row["n"] == 1 for row in results)
        booked: dict[str, int] = defaultdict(int)
        for row in self.attempts():
            assert row["state"] != "started", f"attempt {row['number']} of {row['job_id']} is still open"
            if row["cost_usd"]:
                booked[str(row["job_id"])] += 1
        billed = Counter(
            line["job"].rsplit("-", 1)[0] if line["endpoint"] == "batch" else line["job"]
            for line in self.sandbox.log()
            if line["billed"]
        )
        assert {job: n for job, n in booked.items() if n} == dict(billed), (
            "calls billed and attempts with a cost differ"
        )
        ledger = sum((row["cost_usd"] or Decimal(0)) for row in self.attempts())
        bill = Decimal(self.sandbox.bill()["total_usd"])
        assert abs(ledger - bill) < MICRO, f"the ledger says {ledger}, the sandbox {bill}"

    def tiers(self) -> dict[str, Decimal]:
        """What the sandbox billed, by tier."""
        found: dict[str, Decimal] = defaultdict(Decimal)
        for line in self.sandbox.bill()["by_tier"]:
            found[line["tier"]] += Decimal(line["usd"])
        return dict(found)


@contextmanager
def stage(
    urls: tuple[str, str],
    folder: Path,
    *,
    max_rows: int = 1000,
    service: str = "batch",
    more: str = "",
    env: Mapping[str, str] | None = None,
) -> Iterator[Stage]:
    """A fleet with one batch poller."""
    policy = folder / "policy.toml"
    policy.write_text(SHIPPED_POLICY.read_text() + RULES.format(max_rows=max_rows, more=more, service=service))
    settings = {**QUICK, "WAYBILL_POLICY_FILE": str(policy), **(env or {})}
    with (
        running() as provider,
        running_fleet(*urls, provider.url, folder, env=settings) as fleet,
        Client(*urls) as client,
    ):
        provider.batch_pace(turnaround_s=3600)
        yield Stage(client, provider, fleet, *urls)
