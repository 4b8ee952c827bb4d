"""Give jobs that failed or were put aside another chance: the edges `failed -> queued` and `dead -> queued`."""

from __future__ import annotations

from typing import Final

REQUEUE: Final = """
with moved as (
    update jobs j set state = 'queued', used = 0, losses = 0, route_index = 0, provider = null,
                      cancel_requested = false, error_code = null, error = null,
                      finished_at = null, published_at = now(), waits_for = null,
                      run_id = coalesce(j.run_id, %(run_id)s::uuid),
                      deadline_at = now() + %(deadline_s)s::float8 * interval '1 second',
                      due_at = case when j.due_at is not null then now() + %(deadline_s)s::float8 * interval '1 second' end
    where j.id = any(%(ids)s::uuid[]) and j.state in ('failed', 'dead')
      and exists (select from payloads p where p.job_id = j.id) -- a dropped one has nothing left to ask
    returning j.id, j.attempt
), noted as (
    insert into decisions (job_id, attempt, outcome, reason)
    select id, nullif(attempt, 0), 'requeue', 'asked for again after it had ended without an answer' from moved
)
select id::text from moved
"""
"""Attempts made and their cost stay with the job; its budget of attempts starts anew. `deadline_s` null = no deadline.

Ring the dispatcher for the ids that come back.
"""
