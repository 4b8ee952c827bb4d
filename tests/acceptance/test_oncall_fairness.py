"""One tenant's large run does not keep another's single job waiting, nor interactive work, however large the run is."""

from __future__ import annotations

import time
from pathlib import Path

from sandbox.testing import spawned
from tests.fleet import running_fleet
from waybill import Client, Job

ROOMY = "*:rpm=100000000,itpm=100000000000,otpm=100000000000,tpm=100000000000"
JOBS = 5000


def timed(client: Client, job: Job) -> float:
    began = time.monotonic()
    client.result(client.submit(job), timeout_s=60)
    return time.monotonic() - began


def test_r29_a_single_job_overtakes_a_large_run_of_another_tenant(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with (
        spawned("--latency", "fixed:50ms", "--limit", ROOMY) as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, tmp_path),
        Client(database_url, redis_url) as client,
    ):
        timed(client, Job(intent="extraction", prompt="warm", priority="lo"))
        began = time.monotonic()
        run = client.submit_many(
            [Job(intent="extraction", prompt=f"row {n}", priority="lo", tenant="large") for n in range(JOBS)]
        )
        waits = {"lo": list[float](), "hi": list[float]()}
        while len(waits["hi"]) < 4:
            for priority, seen in waits.items():
                seen.append(timed(client, Job(intent="extraction", prompt="one", priority=priority, tenant="small")))
        still_open = JOBS - len(client._run(client._async.outcomes(run, with_payload=False)))
        done = sum(outcome.result is not None for outcome in client.results(run, timeout_s=170))
        makespan = time.monotonic() - began

    assert done == JOBS
    # They were measured while the run had most of its work before it, so these are no waits of a fleet at rest.
    assert still_open > JOBS / 4
    assert sorted(waits["lo"])[1] < 0.15 * makespan
    assert sorted(waits["hi"])[1] < 0.15 * makespan
