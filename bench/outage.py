"""`./run bench outage --minutes 10 [--json]`: a provider answers 529 for so long, and what the fleet's users feel of it.

Once a second an interactive job is asked and, right after it, its twin that is pinned to the fallback's model: what the
first takes above the usual twin is what the outage adds. Deferrable jobs come in groups all the time; some have a deadline
well after the outage. Then the provider is back, and the crowd that waited for it goes there. The sandbox's log and bill
and the ledger are the judges:

added_max_s          of the interactive jobs from the second one on, and `..._after_return_s` (`twin_max...`: how much above the
                     usual their twins took, which is this machine's own noise)
deferred_extra_usd   what the deferrable jobs' attempts cost beside the answer that each got
refused_a_minute     529s in the busiest minute after the first one: the probes
answered_by_second   how many of those that waited were answered in each second after the return
refused_after        529s and 429s after the return

The exit code is 1 when the outage was felt: `problems` says where.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg
from psycopg.rows import dict_row

from bench.quota import ended_at, whole_log
from sandbox.testing import Running, spawned
from tests.fleet import running_fleet
from waybill import Client, Job, embedded
from waybill.cli.db import run_upgrade

ROOMY = "*:rpm=1000000,itpm=1000000000,otpm=1000000000,tpm=1000000000"
DOWN = "claude-*"
INTENT, FALLBACK = "extraction", "gpt-6-luna"
"""Interactive work: its first model is DOWN, the second answers."""
DEFERRED_INTENT, DEFERRED_MODEL = "reasoning", "claude-opus-5-5"
"""Its only other model costs more."""
GROUP, GROUP_EVERY_S = 6, 10.0
ADDED_MOST_S = 1.0
PROBES_A_MINUTE = 2 * 2 * 2
"""Of each of the two lanes that are asked for (the deferrable jobs' and the interactive ones') two in each half minute."""
CROWD_SHARE = 0.1
"""More of those that waited than this in the first second would be a stampede."""
AFTER_S = 60.0
"""How long the interactive jobs go on after the return."""


@dataclass
class Played:
    """What was seen from outside. Times are seconds since the epoch."""

    began: float = 0.0
    returned: float = 0.0
    # took: of each interactive job, with when it was asked; twins: of the pinned ones.
    took: list[tuple[float, float]] = field(default_factory=list)
    twins: list[tuple[float, float]] = field(default_factory=list)
    answered_by: Counter[str] = field(default_factory=Counter)
    deferred: list[str] = field(default_factory=list)
    done_after_s: float = 0.0


class Play:
    """One outage on a running fleet."""

    def __init__(self, client: Client, sandbox: Running, minutes: float) -> None:
        self._client, self._sandbox, self._seconds = client, sandbox, minutes * 60
        self._asked = 0
        self.seen = Played()

    def run(self) -> Played:
        """Before, during, after."""
        self._ask_for(15)
        self._sandbox.fault("overloaded", model=DOWN)
        self.seen.began = time.time()
        self._ask_for(self._seconds, with_deferred=True)
        self._sandbox.clear_faults()
        self.seen.returned = time.time()
        self._ask_for(AFTER_S)
        outcomes = list(self._client.results(self.seen.deferred, timeout_s=600))
        lost = [outcome.job_id for outcome in outcomes if outcome.result is None]
        assert not lost, f"{len(lost)} deferrable jobs have no answer"
        return self.seen

    def _ask_for(self, seconds: float, *, with_deferred: bool = False) -> None:
        began = time.time()
        next_group = began
        second = 0
        while time.time() < began + seconds:
            self.seen.took.append(self._ask(None))
            self.seen.twins.append(self._ask(FALLBACK))
            if with_deferred and time.time() >= next_group:
                next_group += GROUP_EVERY_S
                self._defer(GROUP, left_s=began + seconds - time.time())
            second += 1
            time.sleep(max(0.0, began + second - time.time()))

    def _ask(self, model: str | None) -> tuple[float, float]:
        self._asked += 1
        job = Job(intent=INTENT, prompt=f"Note {self._asked}: the total is {self._asked}.00.", model=model)
        at, began = time.time(), time.monotonic()
        result = self._client.result(self._client.submit(job), timeout_s=60)
        if model is None:
            self.seen.answered_by[result.model] += 1
        return at, time.monotonic() - began

    def _defer(self, count: int, *, left_s: float) -> None:
        jobs = []
        for number in range(count):
            self._asked += 1
            deadline_s = left_s + 1800 if number % 3 == 0 else None
            prompt = f"Question {self._asked}: why?"
            jobs.append(
                Job(intent=DEFERRED_INTENT, prompt=prompt, priority="lo", tenant="deferred", deadline_s=deadline_s)  # type: ignore[arg-type]  # pydantic reads the class's value
            )
        self.seen.deferred += self._client.submit_many(jobs)


def job_of(line: Mapping[str, Any]) -> str:
    """The job that a line of the sandbox's log is about; a batch names its rows by job and attempt."""
    return str(line["job"] or "")[:36]


def judge(seen: Played, log: Sequence[dict[str, Any]], attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures, and what is wrong with them."""
    during = [took for at, took in seen.took if seen.began <= at < seen.returned]
    twins = [took for at, took in seen.twins if seen.began <= at < seen.returned]
    usual = median(twins)
    added = [took - usual for took in during[1:]]
    twins_after = [took for at, took in seen.twins if at >= seen.returned]
    after = [took - median(twins_after) for at, took in seen.took if at >= seen.returned]
    noise = [took - median(twins_after) for took in twins_after]
    refused = [line for line in log if line.get("status") in (429, 529)]
    refused_after = [line for line in refused if ended_at(line) >= seen.returned]
    minutes = Counter(int((ended_at(line) - seen.began) // 60) for line in refused if line not in refused_after)
    ours = set(seen.deferred)
    answers = [
        line
        for line in log
        if job_of(line) in ours and (line.get("status") == 200 or line.get("outcome") == "succeeded")
    ]
    # Rows of the provider's own batches come when the provider has done them.
    crowd = [ended_at(line) for line in answers if "status" in line]
    seconds = Counter(int(at - min(crowd)) for at in crowd)
    won = {row["job_id"]: row for row in attempts if row["state"] == "succeeded"}
    extra = sum((row["cost_usd"] for row in attempts if row["state"] != "succeeded"), Decimal(0))
    elsewhere = Counter(row["model"] for row in won.values() if row["model"] != DEFERRED_MODEL)
    billed = sum((Decimal(line["usd"]) for line in answers), Decimal(0))
    booked = sum((row["cost_usd"] for row in won.values()), Decimal(0))
    figures: dict[str, Any] = {
        "outage_s": round(seen.returned - seen.began, 1),
        "interactive_jobs": len(during),
        "answered_by": dict(seen.answered_by),
        "first_job_s": round(during[0], 3),
        "usual_s": round(usual, 3),
        "added_p50_s": round(median(added), 3),
        "added_p99_s": round(quantiles(added, n=100, method="inclusive")[98], 3),
        "added_max_s": round(max(added), 3),
        "twin_max_s": round(max(twins) - usual, 3),
        "added_max_after_return_s": round(max(after), 3),
        "twin_max_after_return_s": round(max(noise), 3),
        "deferred_jobs": len(ours),
        "deferred_answers": len(answers),
        "deferred_by_lane": dict(Counter(f"{row['model']} {row['service']}" for row in won.values())),
        "deferred_extra_usd": str(extra),
        "deferred_billed_usd": str(billed),
        "refused": len(refused) - len(refused_after),
        "refused_a_minute": max((count for minute, count in minutes.items() if minute > 0), default=0),
        "refused_after": len(refused_after),
        "first_answer_after_s": round(min(crowd) - seen.returned, 1),
        "all_answered_after_s": round(max(crowd) - seen.returned, 1),
        "answered_by_second": [seconds[n] for n in range(max(seconds) + 1)],
    }
    expected = {
        "an interactive job felt it": figures["added_max_s"] < ADDED_MOST_S,
        "a deferrable job is not answered once and by one call": len(won) == len(answers) == len(ours),
        "a deferrable job was sent to another model": not elsewhere,
        "deferrable jobs cost something extra": extra == 0 and billed == booked,
        "the dead provider was asked more often than probing takes": figures["refused_a_minute"] <= PROBES_A_MINUTE,
        "those that waited came all at once": seconds[0] <= max(5, CROWD_SHARE * len(crowd)),
        "the provider was asked for too much when it came back": not refused_after,
    }
    return figures | {"problems": [what for what, holds in expected.items() if not holds]}


def attempts_of(database_url: str, job_ids: Sequence[str]) -> list[dict[str, Any]]:
    """All that was tried for these jobs."""
    with psycopg.connect(database_url.replace("+psycopg", ""), row_factory=dict_row) as connection:
        sql = "select job_id::text, model, service, state, cost_usd from attempts where job_id = any(%s::uuid[])"
        return connection.execute(sql, [list(job_ids)]).fetchall()


def main(arguments: Sequence[str]) -> None:
    """Play it and print."""
    parser = argparse.ArgumentParser(prog="./run bench outage", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--minutes", type=float, default=10.0, help="of outage, in real time")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as state, embedded.services(Path(state) / "services") as services:
        database_url, redis_url = str(services.database_url), str(services.redis_url)
        run_upgrade(database_url)
        (Path(state) / "logs").mkdir()
        with (
            spawned("--latency", "fixed:200ms", "--limit", ROOMY) as sandbox,
            running_fleet(database_url, redis_url, sandbox.url, Path(state) / "logs", workers={"anthropic": 2}),
            Client(database_url, redis_url) as client,
        ):
            seen = Play(client, sandbox, options.minutes).run()
            figures = judge(seen, whole_log(sandbox), attempts_of(database_url, seen.deferred))
    if options.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:>26}  {value}")
    sys.exit(1 if figures["problems"] else 0)
