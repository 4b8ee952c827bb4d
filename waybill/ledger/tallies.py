"""Sums over the whole ledger at a cost that does not grow with it: closed hours are summed once, the rest at each look.

An hour of attempts is closed a quarter of an hour after its end. Attempts that are still under way then (a batch lane takes
a day) are noted and added when they end. Weakness: an attempt that was booked as `unknown` and comes back `fenced` after
its hour was closed keeps the estimate in the sums; the ledger itself has the true figure.

Jobs that only check others (shadow, judge) cost what they cost and replace nothing: they have no part in the baseline.

Every statement may be run by any number of processes at once: the mark's row lock lets one of them sum an hour up.
"""

from __future__ import annotations

from typing import Final

BOUNDS_S: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
"""Upper bounds of the slots of job durations; renaming the metric that carries them is a migration."""
_SLOT: Final = f"width_bucket(extract(epoch from j.finished_at - j.submitted_at)::float8, array{list(BOUNDS_S)})"

_SPAN: Final = """
with mark as (
    select upto from tally_marks where kind = '{kind}' for update skip locked
), first as (
    select date_bin('1 hour', min({column}), 'epoch') as hour from {table}, mark where {column} >= mark.upto
), span as (
    -- Hours without anything are passed over in one go; null = there is nothing at all after the mark.
    select greatest(upto, hour) as since,
           least(date_bin('1 hour', now() - interval '15 minutes', 'epoch'),
                 case when hour is not null then hour + interval '1 day' end) as until
    from mark, first
), moved as (
    update tally_marks set upto = until from span where kind = '{kind}' and until > upto returning upto
)"""

_ATTEMPT_COLUMNS: Final = """
j.intent, a.provider, a.model, a.service, a.state, coalesce(a.cost_source, 'usage') as source, count(*) as calls,
coalesce(sum(a.cost_usd), 0) as usd, coalesce(sum(a.flagship_usd) filter (where c.job_id is null), 0) as flagship_usd,
coalesce(sum(a.input_tokens), 0)::bigint as input_tokens, coalesce(sum(a.output_tokens), 0)::bigint as output_tokens,
coalesce(sum(a.cache_read_tokens), 0)::bigint as cache_read_tokens,
coalesce(sum(coalesce(a.cache_write_tokens, 0) + coalesce(a.cache_write_1h_tokens, 0)), 0)::bigint as cache_write_tokens
"""
_ATTEMPT_GROUP: Final = "j.intent, a.provider, a.model, a.service, a.state, coalesce(a.cost_source, 'usage')"
_ADD: Final = """
on conflict (bucket, intent, provider, model, service, state, source) do update set
    calls = attempt_tallies.calls + excluded.calls, usd = attempt_tallies.usd + excluded.usd,
    flagship_usd = attempt_tallies.flagship_usd + excluded.flagship_usd,
    input_tokens = attempt_tallies.input_tokens + excluded.input_tokens,
    output_tokens = attempt_tallies.output_tokens + excluded.output_tokens,
    cache_read_tokens = attempt_tallies.cache_read_tokens + excluded.cache_read_tokens,
    cache_write_tokens = attempt_tallies.cache_write_tokens + excluded.cache_write_tokens
"""

CLOSE_ATTEMPTS: Final = (
    _SPAN.format(kind="attempts", table="attempts", column="started_at")
    + f""", late as (
    insert into tally_late (job_id, number)
    select a.job_id, a.number from attempts a, span, moved
    where a.started_at >= span.since and a.started_at < span.until and a.state = 'started'
), summed as (
    insert into attempt_tallies
    select date_bin('1 hour', a.started_at, 'epoch') as bucket, {_ATTEMPT_COLUMNS}
    from moved, span join attempts a on a.started_at >= span.since and a.started_at < span.until and a.state <> 'started'
    join jobs j on j.id = a.job_id left join checks c on c.job_id = a.job_id group by 1, {_ATTEMPT_GROUP}
    {_ADD}
)
select upto from moved
"""
)
"""Sum up to a day of closed hours; no row when there is nothing to do or somebody else does it. Index attempts_begun."""

ADD_LATE: Final = f"""
with ended as (
    delete from tally_late l using attempts a
    where a.job_id = l.job_id and a.number = l.number and a.state <> 'started' returning a.*
)
insert into attempt_tallies
select date_bin('1 hour', a.started_at, 'epoch') as bucket, {_ATTEMPT_COLUMNS}
from ended a join jobs j on j.id = a.job_id left join checks c on c.job_id = a.job_id group by 1, {_ATTEMPT_GROUP}
{_ADD}
"""

CLOSE_JOBS: Final = (
    _SPAN.format(kind="jobs", table="jobs", column="finished_at")
    + f""", summed as (
    insert into job_tallies
    select date_bin('1 hour', j.finished_at, 'epoch') as bucket, j.intent, j.priority, j.state,
           case when j.state in ('failed', 'dead') then coalesce(j.error_code, '-') else '' end as code,
           {_SLOT} as slot, count(*) as jobs,
           coalesce(sum(extract(epoch from j.finished_at - j.submitted_at)), 0)::float8 as seconds
    from moved, span join jobs j on j.finished_at >= span.since and j.finished_at < span.until
    group by 1, 2, 3, 4, 5, 6
    on conflict (bucket, intent, priority, state, code, slot) do update set
        jobs = job_tallies.jobs + excluded.jobs, seconds = job_tallies.seconds + excluded.seconds
)
select upto from moved
"""
)
"""As CLOSE_ATTEMPTS. Index jobs_finished."""

_ATTEMPTS: Final = f"""
    select bucket, intent, provider, model, service, state, source, calls, usd, flagship_usd, input_tokens, output_tokens,
           cache_read_tokens, cache_write_tokens from attempt_tallies
    union all
    select date_bin('1 hour', a.started_at, 'epoch'), {_ATTEMPT_COLUMNS}
    from attempts a join jobs j on j.id = a.job_id left join checks c on c.job_id = a.job_id
    where a.started_at >= (select upto from tally_marks where kind = 'attempts') and a.state <> 'started'
    group by 1, {_ATTEMPT_GROUP}
"""

ATTEMPT_TOTALS: Final = f"""
select intent, provider, model, service, state, source, sum(calls)::bigint as calls, sum(usd) as usd,
       sum(flagship_usd) as flagship_usd, sum(input_tokens)::bigint as input_tokens,
       sum(output_tokens)::bigint as output_tokens, sum(cache_read_tokens)::bigint as cache_read_tokens,
       sum(cache_write_tokens)::bigint as cache_write_tokens
from ({_ATTEMPTS}) as all_attempts group by 1, 2, 3, 4, 5, 6
"""

JOB_TOTALS: Final = f"""
select intent, priority, state, code, slot, sum(jobs)::bigint as jobs, sum(seconds)::float8 as seconds from (
    select intent, priority, state, code, slot, jobs, seconds from job_tallies
    union all
    select j.intent, j.priority, j.state,
           case when j.state in ('failed', 'dead') then coalesce(j.error_code, '-') else '' end, {_SLOT}, count(*),
           coalesce(sum(extract(epoch from j.finished_at - j.submitted_at)), 0)::float8
    from jobs j where j.finished_at >= (select upto from tally_marks where kind = 'jobs') group by 1, 2, 3, 4, 5
) as all_jobs group by 1, 2, 3, 4, 5
"""

SPEND_BY_HOUR: Final = f"""
select bucket as at, sum(usd) as usd, sum(flagship_usd) as flagship_usd,
       coalesce(sum(calls) filter (where state = 'succeeded'), 0)::bigint as answered,
       coalesce(sum(calls) filter (where state = 'weak'), 0)::bigint as weak,
       coalesce(sum(calls) filter (where state in ('failed', 'broken', 'unknown', 'throttled')), 0)::bigint as failed
from ({_ATTEMPTS}) as all_attempts where bucket > now() - %(hours)s * interval '1 hour' group by 1 order by 1
"""

SPEND_BY_MINUTE: Final = """
select date_bin('1 minute', a.started_at, 'epoch') as at, coalesce(sum(a.cost_usd), 0) as usd,
       coalesce(sum(a.flagship_usd) filter (where c.job_id is null), 0) as flagship_usd,
       count(*) filter (where a.state = 'succeeded') as answered,
       count(*) filter (where a.state = 'weak') as weak,
       count(*) filter (where a.state in ('failed', 'broken', 'unknown', 'throttled')) as failed
from attempts a left join checks c on c.job_id = a.job_id
where a.started_at > now() - %(minutes)s * interval '1 minute' and a.state <> 'started'
group by 1 order by 1
"""
"""Index attempts_begun."""

WAITING: Final = """
select state, intent, priority, case when state = 'queued' then '' else coalesce(provider, '') end as provider,
       count(*) as jobs, extract(epoch from now() - min(submitted_at))::float8 as oldest_s
from jobs where state in ('queued', 'routed', 'parked', 'running') group by 1, 2, 3, 4
"""
"""Indexes jobs_waiting, jobs_parked, jobs_leases."""

RESERVED: Final = """
select coalesce(sum(a.estimate_usd), 0) as usd from jobs j join attempts a on a.job_id = j.id and a.number = j.attempt
where j.state = 'running' and a.state = 'started'
"""

SPEND_RATE: Final = """
with usual as (
    select percentile_cont(0.5) within group (order by usd) as usd, count(*) as hours from (
        select bucket, sum(usd)::float8 as usd from attempt_tallies
        where bucket > now() - interval '15 days'
          and extract(hour from bucket at time zone 'UTC') = extract(hour from now() at time zone 'UTC')
        group by bucket
    ) as same_hour
)
select (select coalesce(sum(cost_usd), 0) from attempts where started_at > now() - interval '1 hour') as usd,
       usual.usd as usual_usd, usual.hours from usual
"""
"""Of the last hour, and the median of the same hour of day in the last fortnight (days without spending left out)."""

BILL_GAPS: Final = """
select b.provider, sum(coalesce(l.usd, 0) - b.usd) as gap_usd, count(*) as days
from provider_bills b left join lateral (
    select sum(a.cost_usd) as usd from attempts a
    where a.provider = b.provider and a.started_at >= b.day::timestamp at time zone 'UTC'
      and a.started_at < (b.day + 1)::timestamp at time zone 'UTC'
) l on true
where b.day > current_date - 32 group by 1
"""
"""Ours minus theirs over the days that have a bill. Index attempts_begun."""

NOTE_BILL: Final = """
insert into provider_bills (provider, day, usd) values (%(provider)s, %(day)s, %(usd)s)
on conflict (provider, day) do update set usd = excluded.usd, noted_at = now()
"""

SERVER: Final = """
select (select count(*) from pg_stat_activity where datname is not null)::float8
           / current_setting('max_connections')::float8 as connections, pg_database_size(current_database()) as bytes
"""
BUDGETS: Final = """
select scope, count(*) filter (where spent >= 0.8 * cap_usd) as at_80, count(*) filter (where spent >= cap_usd) as at_100,
       min(greatest(0, cap_usd - spent)) as left_usd
from (select scope, cap_usd, case when coalesce(resets_at <= now(), false) then 0 else spent_usd end as spent
      from budgets where cap_usd > 0 and cardinality(alert_shares) > 0) as now_spent group by scope
"""
OPEN_RUNS: Final = "select state, count(*) as runs from runs where state <> 'cancelled' group by state"
CASCADES: Final = "select intent, drift is not null as has_drifted from cascades where ended_at is null"
