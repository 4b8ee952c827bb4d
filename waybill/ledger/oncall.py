"""What people on call do to jobs, and what an outage does, in SQL: each one statement, guarded by the states it starts from.

docs/oncall.md tells the same by verb and state.
"""

from __future__ import annotations

from typing import Final

# --- lanes that are not to be taken -----------------------------------------------------------------------------------

HOLD_BACK: Final = """
with input as (
    select * from unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(numbers)s::smallint[], %(delays)s::float8[],
                         %(reasons)s::text[]) as t(id, token, number, delay_s, reason)
), moved as (
    update jobs j set
        state = case when j.cancel_requested then 'cancelled' else 'parked' end,
        attempt = j.attempt - 1,
        not_before = case when not j.cancel_requested then now() + i.delay_s * interval '1 second' end,
        error_code = case when j.cancel_requested then 'cancelled' else %(code)s end, error = i.reason,
        published_at = now(), lease_token = null, lease_owner = null, lease_until = null,
        finished_at = case when j.cancel_requested then now() end
    from input i where j.id = i.id and j.lease_token = i.token and j.state = 'running'
    returning j.id, j.state
), undone as (
    delete from attempts a using input i join moved using (id)
    where a.job_id = i.id and a.number = i.number and a.state = 'started'
)
select id::text, state from moved
"""
"""Undo claims that cannot go on now (`code`: `lane_held`, `budget_busy`, `budget_exhausted`): no attempt is counted and no
row is left, so that waiting costs nothing."""

LET_GO: Final = """
update jobs j set not_before = now() + random() * %(within_s)s * interval '1 second'
where j.state = 'parked' and j.not_before > now() + %(within_s)s * interval '1 second'
  and j.error_code is distinct from 'waiting_for_quota' and j.provider = %(provider)s
  and (%(model)s::text is null or j.route -> j.route_index::int ->> 'model' = %(model)s)
returning j.id::text
"""
"""A lane is back: those who wait for it ask again, spread over the given time. Index jobs_parked (only parked jobs)."""

# --- drain, pause, resume ---------------------------------------------------------------------------------------------

HOLD: Final = """
insert into holds (kind, name, reason) values (%(kind)s, %(name)s, %(reason)s)
on conflict (kind, name) do update set reason = excluded.reason
returning since
"""
UNHOLD: Final = "delete from holds where kind = %(kind)s and name = %(name)s returning reason, since"
HOLDS: Final = "select kind, name, reason, since from holds order by kind, name"

FIND_RUN: Final = """
select id::text, name, tenant, state, created_at from runs
where id::text like %(prefix)s or name = %(name)s order by created_at desc, id desc limit 20
"""
SET_RUN: Final = """
update runs set state = %(state)s where id = %(id)s and state = any(%(before)s) returning id::text
"""
KNOWN_INTENTS: Final = (
    "select distinct intent from (select intent from jobs order by id desc limit 10000) recent order by 1"
)

WAITING_FOR_WORKERS: Final = """
update jobs j set published_at = now()
where j.state = 'routed' and (j.run_id = %(run_id)s::uuid or j.intent = %(intent)s)
returning j.id::text, j.provider, j.priority, j.intent, j.route -> j.route_index::int ->> 'model' as model
"""
"""Jobs of a resumed run or intent whose doorbells were heard in vain."""

# --- cancel -----------------------------------------------------------------------------------------------------------

CANCEL_RUN: Final = """
with closed as (
    update runs set state = 'cancelled' where id = %(run_id)s::uuid returning id
), asked as (
    select j.id from jobs j join closed on j.run_id = closed.id
    where j.state not in ('succeeded', 'failed', 'cancelled', 'dead') and not j.cancel_requested
    order by j.id for update of j
), moved as (
    update jobs j set cancel_requested = true,
        state = case when j.state = 'running' then j.state else 'cancelled' end,
        finished_at = case when j.state = 'running' then null else now() end, not_before = null,
        error_code = 'cancelled', error = 'its run was cancelled'
    from asked where j.id = asked.id
    returning j.id, j.state, j.stream
), noted as (
    insert into decisions (job_id, outcome, reason)
    select id, 'cancel', case state when 'running' then 'its run was cancelled; the call is under way'
                                    else 'its run was cancelled before a call' end
    from moved
)
select id::text, state from moved
"""
"""One statement whatever the size of the run. Index jobs_run_seq."""

# --- dead letters -----------------------------------------------------------------------------------------------------

DEAD_LETTERS: Final = """
select j.id::text, j.state, j.intent, j.tenant, j.error_code, j.error, j.finished_at, j.losses, j.run_id::text,
       exists (select from payloads p where p.job_id = j.id) as has_payload
from jobs j
where j.state = any(%(states)s) and j.finished_at is not null
  and (%(code)s::text is null or j.error_code = %(code)s)
  and (%(ids)s::uuid[] is null or j.id = any(%(ids)s::uuid[]))
  and exists (select from payloads p where p.job_id = j.id)
order by j.finished_at desc, j.id limit %(limit)s
"""
"""Newest first. Index jobs_finished."""

DEAD_BY_CODE: Final = """
select state, coalesce(error_code, '-') as code, count(*) as jobs from jobs
where state = any(%(states)s) and finished_at is not null and exists (select from payloads p where p.job_id = jobs.id)
group by 1, 2 order by 3 desc
"""

DROP: Final = """
with chosen as (
    select id from jobs where id = any(%(ids)s::uuid[]) and state in ('failed', 'dead') for update
), purged as (
    delete from payloads p using chosen where p.job_id = chosen.id returning p.job_id
), noted as (
    insert into decisions (job_id, outcome, reason) select job_id, 'drop', 'dropped by hand: what was asked is deleted'
    from purged
)
select job_id::text as id from purged
"""
"""The request's text goes; the job's row, its attempts and what they cost stay on the ledger."""

FIND_JOB: Final = "select id::text, state from jobs where id::text like %(prefix)s limit 2"

SET_WEIGHT: Final = """
insert into tenants (name, weight) values (%(name)s, %(weight)s)
on conflict (name) do update set weight = excluded.weight
"""

# --- status -----------------------------------------------------------------------------------------------------------

LANES: Final = """
select a.provider || '/' || a.model || '/' || a.service as lane, a.provider, a.model,
       count(*) filter (where a.state = 'succeeded') as answered,
       count(*) filter (where a.state = 'throttled') as throttled,
       count(*) filter (where a.state in ('failed', 'broken', 'unknown')) as failed,
       max(a.ended_at) filter (where a.state = 'succeeded') as last_success,
       percentile_cont(0.5) within group (order by extract(epoch from a.ended_at - a.started_at))
           filter (where a.state = 'succeeded') as median_s
from attempts a
where a.started_at > now() - %(window_s)s * interval '1 second' and a.state not in ('started', 'released')
group by 1, 2, 3 order by 1
"""
"""Index attempts_begun."""

UNDER_WAY: Final = """
select r ->> 'provider' || '/' || (r ->> 'model') || '/' || (r ->> 'service') as lane, count(*) as jobs
from (select j.route -> j.route_index::int as r from jobs j where j.state = 'running') running group by 1
"""

INTENTS: Final = """
with waiting as (
    select intent, count(*) filter (where state = 'queued') as queued,
           count(*) filter (where state = 'routed') as routed, count(*) filter (where state = 'parked') as parked,
           count(*) filter (where state = 'running') as running,
           extract(epoch from now() - min(submitted_at) filter (where state in ('queued', 'routed', 'parked')))::float8
               as oldest_s
    from jobs where state in ('queued', 'routed', 'parked', 'running') group by intent
), done as (
    select intent, count(*) filter (where state = 'succeeded') as succeeded,
           count(*) filter (where state in ('failed', 'dead')) as failed,
           percentile_cont(0.95) within group (order by extract(epoch from finished_at - submitted_at))
               filter (where state = 'succeeded') as p95_s
    from jobs where finished_at > now() - %(window_s)s * interval '1 second' group by intent
), spent as (
    select j.intent, sum(a.cost_usd) as usd from attempts a join jobs j on j.id = a.job_id
    where a.started_at > now() - interval '1 hour' group by j.intent
)
select intent, coalesce(w.queued, 0) as queued, coalesce(w.routed, 0) as routed, coalesce(w.parked, 0) as parked,
       coalesce(w.running, 0) as running, w.oldest_s, coalesce(d.succeeded, 0) as succeeded,
       coalesce(d.failed, 0) as failed, d.p95_s::float8, coalesce(s.usd, 0) as usd_per_hour
from waiting w full join done d using (intent) full join spent s using (intent) order by intent
"""
"""Indexes jobs_waiting, jobs_parked, jobs_leases, jobs_finished, attempts_begun."""

ROUTE_CHANGES: Final = """
select d.at, d.job_id::text, d.outcome, d.reason from decisions d
where d.id > (select coalesce(max(id), 0) from decisions) - 20000 and d.outcome in ('fallback', 'escalate', 'lost')
order by d.id desc limit %(limit)s
"""
"""Among the latest 20,000 decisions, so that a busy ledger answers as quickly as a quiet one."""

DEAD_COUNT: Final = """
select count(*) as jobs from jobs j where j.state = 'dead' and j.finished_at is not null
  and exists (select from payloads p where p.job_id = j.id)
"""

GOOD_ENOUGH: Final = """
select j.intent, count(*) as answers,
       count(*) filter (where a.state = 'succeeded')::float8 / count(*) as ratio
from attempts a join jobs j on j.id = a.job_id
where a.started_at > now() - interval '1 hour' and a.state in ('succeeded', 'weak') group by 1
"""
"""Share of the last hour's answers that were good enough as they came. Index attempts_begun."""

GRADED: Final = """
select intent, avg(score) as mean, count(*) as grades from grades
where at > now() - interval '1 day' group by 1
"""
"""Index grades_intent."""

# --- the dashboard ----------------------------------------------------------------------------------------------------

RUNS: Final = """
with latest as (
    select id, name, state, created_at from runs order by created_at desc, id desc limit %(limit)s
)
select l.id::text, l.name, l.state, l.created_at, j.*, a.usd, a.flagship_usd from latest l
left join lateral (
    select count(*) as jobs, count(*) filter (where state = 'succeeded') as succeeded,
           count(*) filter (where state in ('failed', 'dead')) as failed,
           count(*) filter (where state = 'cancelled') as cancelled,
           count(*) filter (where state = 'running') as running
    from jobs where run_id = l.id
) j on true
left join lateral (
    select coalesce(sum(cost_usd), 0) as usd, coalesce(sum(flagship_usd), 0) as flagship_usd
    from attempts join jobs on jobs.id = attempts.job_id where jobs.run_id = l.id
) a on true
order by l.created_at desc
"""
"""The newest runs with how far they are. Index jobs_run_seq: reads every job of these runs, so ask seldom."""

DETOURS: Final = """
with recent as (
    select job_id, outcome, attempt, detail from decisions
    where id > (select coalesce(max(id), 0) from decisions) - 20000 and at > now() - interval '1 hour'
      and outcome in ('route', 'fallback')
), passed_over as (
    select job_id, passed.key as model from recent, jsonb_each_text(detail -> 'passed_over') as passed
    where outcome = 'route'
    union
    select r.job_id, f.model from recent r join attempts f on f.job_id = r.job_id and f.number = r.attempt
    where r.outcome = 'fallback'
), skipped as (
    -- Passed over because of an outage, a drain or a failure: the model is in the route all the same; others never were.
    -- Models that are out stand behind the others, in the chain's order: the first one is where the job belonged.
    select distinct on (p.job_id) p.job_id, p.model from passed_over p join jobs j on j.id = p.job_id,
        jsonb_array_elements(j.route) with ordinality as c(candidate, place)
    where c.candidate ->> 'model' = p.model order by p.job_id, c.place
)
select s.model as from_model, a.model as to_model, a.service, count(*) as jobs, coalesce(sum(a.cost_usd), 0) as usd,
       avg(a.input_tokens)::int as input_tokens, avg(a.output_tokens)::int as output_tokens
from skipped s join attempts a on a.job_id = s.job_id and a.state = 'succeeded' and a.model <> s.model
group by 1, 2, 3 order by 4 desc
"""
"""Jobs of the last hour that another model answered because theirs was out, among the latest 20,000 decisions."""

OPEN_BATCHES: Final = """
select b.id::text, b.provider, b.part as model, b.state, b.provider_id, b.rows,
       (select count(*) from provider_batch_rows r where r.batch_id = b.id and r.state = 'open') as open_rows,
       extract(epoch from now() - b.gathered_at)::float8 as age_s, b.cancel_at is not null as is_cancelled, b.error
from provider_batches b where b.state <> 'ended' order by b.gathered_at limit %(limit)s
"""
"""Provider batches that are under way, the oldest first. Index provider_batches_open."""

WAITING_FOR: Final = """
select j.route -> j.route_index::int ->> 'model' as model, j.error_code as cause, count(*) as jobs
from jobs j where j.state = 'parked' group by 1, 2 order by 3 desc
"""
"""What parked jobs wait for. Index jobs_parked."""

ESCALATED: Final = """
select j.intent, count(*) filter (where a.state = 'weak')::float8 / count(*) as ratio
from attempts a join jobs j on j.id = a.job_id
where a.started_at > now() - %(window_s)s * interval '1 second' and a.state in ('succeeded', 'weak') group by 1
"""
"""Index attempts_begun."""
