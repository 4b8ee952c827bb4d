"""Submit one job and wait for its answer. Needs a running fleet: `./run up` prints the two variables to export."""

from __future__ import annotations

from waybill import Client, JobError

with Client.from_env() as client:
    job_id = client.submit(
        intent="summarization",
        prompt="Summarize in one sentence: The ship left at dawn with forty crates and came back with thirty-nine.",
        idempotency_key="ship-report-1",  # submitting it again gives the same job, not a second bill
    )
    try:
        result = client.result(job_id, timeout_s=60)
    except JobError as exc:
        print(f"no answer: {exc}")
    else:
        print(result.text)
        print(f"{result.model} for ${result.usd}, because {result.reason}")
