"""Jobs and runs as their tenant sees them. Every statement has the tenant in it: another tenant's job is not there."""

from __future__ import annotations

from typing import Final

OWNED: Final = "select id::text from jobs where id = any(%(ids)s::uuid[]) and tenant = %(tenant)s"

LIST: Final = """
select j.id::text, j.run_id::text, j.seq, j.intent, j.state, j.priority, j.model, j.quality, j.error_code, j.error, j.stream,
       j.submitted_at, j.finished_at, j.deadline_at, t.calls, t.usd, t.unpriced, t.lane
from jobs j
left join lateral (
    select count(*) filter (where state <> 'released') as calls, sum(cost_usd) as usd,
           count(*) filter (where cost_source = 'unpriced') as unpriced,
           (array_agg(provider || '/' || model || '/' || service order by number desc))[1] as lane
    from attempts where job_id = j.id
) t on true
where j.tenant = %(tenant)s
  and (%(id)s::uuid is null or j.id = %(id)s::uuid)
  and (%(after)s::uuid is null or j.id < %(after)s::uuid)
  and (%(run)s::uuid is null or j.run_id = %(run)s::uuid)
  and (%(state)s::text is null or j.state = %(state)s)
order by j.id desc limit %(limit)s
"""
"""Newest first: ids sort by time. Walks the primary key, or jobs_run_seq for a run."""

STATE: Final = "select state, stream, error_code from jobs where id = %(id)s::uuid and tenant = %(tenant)s"

NOTE_RETRY: Final = """
insert into decisions (job_id, outcome, reason)
select id, 'client_retry',
       'the client''s SDK sent this again (retry ' || %(retry)s::int || '): what it sent before ended in an error or unanswered'
from jobs where id = %(id)s::uuid
"""

RUNS: Final = """
select r.id::text, r.name, r.state, r.created_at from runs r
where r.tenant = %(tenant)s and (%(id)s::uuid is null or r.id = %(id)s::uuid)
  and (%(after)s::uuid is null or r.id < %(after)s::uuid)
order by r.id desc limit %(limit)s
"""

RUN_COUNTS: Final = """
select j.state, count(*) as jobs, coalesce(sum(t.usd), 0) as usd, coalesce(sum(t.unpriced), 0) as unpriced
from jobs j
left join lateral (
    select sum(cost_usd) as usd, count(*) filter (where cost_source = 'unpriced') as unpriced from attempts where job_id = j.id
) t on true
where j.run_id = %(run)s::uuid and j.tenant = %(tenant)s group by j.state
"""

RUN_PAGE: Final = """
select j.id::text, j.seq, j.state, j.error_code, j.error, j.finished_at
from jobs j where j.run_id = %(run)s::uuid and j.seq > %(after)s order by j.seq limit %(limit)s
"""
"""A run in its order, page by page. Index jobs_run_seq."""
