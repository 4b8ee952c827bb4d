"""What runs and jobs came to: the figures behind the batch runner's progress, output and report, by SQL.

Every attempt counts, failed and thrown-away ones too: `usd` is what was spent, not what the answers would have cost.
Each statement takes ids in arrays and relies on the primary keys of `jobs`, `attempts` and `results`, on
`decisions_job`, and for whole runs on `jobs_run_seq`.
"""

from __future__ import annotations

from typing import Final

REVISION: Final = "select to_regclass('runs') is not null as there"
"""Whether the ledger has its tables at all."""

LATEST_RUN: Final = """
select id::text, fingerprint, state from runs
where tenant = %(tenant)s and (fingerprint = %(fingerprint)s or fingerprint like %(fingerprint)s || '.%%')
order by created_at desc, id desc limit 1
"""
"""The newest generation of a run. Index runs_fingerprint by tenant; a tenant has as many runs as it typed commands."""

FINISHED: Final = """
select j.id::text, j.state, a.usd, a.unpriced
from jobs j
left join lateral (
    select sum(cost_usd) as usd, count(*) filter (where cost_source = 'unpriced') as unpriced
    from attempts where job_id = j.id
) a on true
where j.id = any(%(ids)s::uuid[]) and j.finished_at is not null
"""
"""Which of these jobs are final, and what they cost: asked a few times a second, so it reads no texts."""

ANSWERS: Final = """
select j.id::text, j.state, j.error_code, j.error, r.body, a.model, a.service, a.provider, a.served_model,
       coalesce(d.reason, a.reason) as reason, t.calls, t.usd, t.unpriced, t.tokens_in, t.tokens_out
from jobs j
left join results r on r.job_id = j.id
left join lateral (
    select count(*) filter (where state <> 'released' and service <> 'reuse') as calls, sum(cost_usd) as usd,
           count(*) filter (where cost_source = 'unpriced') as unpriced,
           sum(coalesce(input_tokens, 0) + coalesce(cache_read_tokens, 0) + coalesce(cache_write_tokens, 0)
               + coalesce(cache_write_1h_tokens, 0)) as tokens_in,
           sum(output_tokens) as tokens_out, max(number) as last
    from attempts where job_id = j.id
) t on true
left join attempts a on a.job_id = j.id and a.number = coalesce(r.attempt, t.last)
left join lateral (
    -- What led to the model that answered: the last change of lane before it, else the routing's own reason.
    select reason from decisions
    where job_id = j.id and outcome in ('fallback', 'escalate') and attempt < a.number order by id desc limit 1
) d on true
where j.id = any(%(ids)s::uuid[]) and j.finished_at is not null
"""
"""All that a row of an output file needs, for final jobs."""

_CHOSEN = """
with chosen as (
    select id from jobs where id = any(%(ids)s::uuid[])
    union
    select id from jobs where run_id is not null and run_id = any(%(runs)s::uuid[])
)
"""

LANE_TOTALS: Final = (
    _CHOSEN
    + """
select j.intent, a.model, a.service,
       count(*) filter (where a.state = 'succeeded') as answered,
       count(*) as attempts,
       coalesce(sum(coalesce(a.input_tokens, 0) + coalesce(a.cache_read_tokens, 0) + coalesce(a.cache_write_tokens, 0)
                    + coalesce(a.cache_write_1h_tokens, 0)), 0)::bigint as input_tokens,
       coalesce(sum(a.output_tokens), 0)::bigint as output_tokens,
       coalesce(sum(a.cost_usd), 0) as usd,
       coalesce(sum(a.cost_usd) filter (where a.cost_source = 'estimated'), 0) as estimated_usd,
       coalesce(sum(a.flagship_usd), 0) as flagship_usd,
       coalesce(sum(a.flagship_usd - s.list) filter (where a.provider <> 'local'), 0) as routing_usd,
       coalesce(sum(a.flagship_usd - s.list) filter (where a.provider = 'local'), 0) as local_usd,
       coalesce(sum(s.list - s.uncached), 0) as lane_usd,
       coalesce(sum(s.uncached - a.cost_usd) filter (where a.service <> 'reuse'), 0) as prompt_cache_usd,
       coalesce(sum(s.uncached) filter (where a.service = 'reuse'), 0) as response_cache_usd,
       coalesce(sum(a.cost_usd) filter (where s.list is null), 0) as unused_usd,
       count(*) filter (where a.cost_source = 'unpriced') as unpriced
from chosen join jobs j using (id) join attempts a on a.job_id = j.id
-- Of answers only; one from before these figures were kept counts as if only its model had saved something.
cross join lateral (
    select case when a.flagship_usd is not null then coalesce(a.uncached_usd, a.cost_usd) end as uncached,
           case when a.flagship_usd is not null then coalesce(a.list_usd, a.uncached_usd, a.cost_usd) end as list
) s
where a.state <> 'released'
group by j.intent, a.model, a.service
"""
)
"""Attempts and money by intent and lane. `answered` = jobs whose answer that lane gave.

What saved it, one after the other: another model than the flagship (`routing_usd`; `local_usd` where that is ours), another
service than the interactive one, the provider's prompt cache, an earlier answer given again; less the calls whose answer
was not used (`unused_usd`). The six add up to `flagship_usd - usd`, but for calls without a price."""

JOB_TOTALS: Final = (
    _CHOSEN
    + """
select j.intent, j.state, count(*) as jobs,
       extract(epoch from min(j.submitted_at))::float8 as first_s,
       extract(epoch from max(j.finished_at))::float8 as last_s
from chosen join jobs j using (id) group by j.intent, j.state
"""
)
"""Jobs by intent and state, with the time from the first submission to the last end (seconds since 1970)."""
