"""The batch lane in SQL: gathering rows, holding a batch while something is done with it, rows that leave the lane.

A job whose row is in a batch is `running` under a lease that outlives the batch; its fencing token is the row's. So a job
that left (hedged, cancelled) and a result that comes late meet as any two workers do: the late one is paid and not used.
"""

from __future__ import annotations

from typing import Final

LEASE_S: Final = 3 * 86400
"""A batch may take 24 hours and be sent more than once; beyond this `control` takes its jobs back as from a lost worker."""

_OPEN_TO_ALL: Final = """
      and not j.cancel_requested
      and not exists (select from runs r where r.id = j.run_id and r.state = 'paused')
      and j.intent not in (select name from holds where kind = 'intent')
"""
_PART: Final = "case when c.r ->> 'provider' = any(%(one_model)s) then c.r ->> 'model' else '' end"

WAITING: Final = f"""
select c.r ->> 'provider' as provider, {_PART} as part, count(*) as rows, sum(j.payload_bytes)::bigint as payload_bytes,
       extract(epoch from now() - min(j.published_at))::float8 as waited_s,
       extract(epoch from min(j.due_at - (c.r ->> 'leave_s')::float8 * interval '1 second') - now())::float8 as tightest_s
from jobs j cross join lateral (select j.route -> j.route_index::int as r) c
where j.provider = 'batch' and j.state = 'routed' {_OPEN_TO_ALL}
group by 1, 2
"""  # noqa: S608  # our own constants, no input
"""Rows that wait for a batch, by provider and model (where a batch has one). Index jobs_batched."""

UNDER_WAY: Final = """
select provider, part, sum(payload_bytes)::bigint as payload_bytes, bool_or(state = 'gathered' and tries > 0) as is_stuck
from provider_batches where state <> 'ended' group by 1, 2
"""

GATHER: Final = f"""
with waiting as (
    select j.id, j.payload_bytes, j.due_at
    from jobs j cross join lateral (select j.route -> j.route_index::int as r) c
    where j.provider = 'batch' and j.state = 'routed' and c.r ->> 'provider' = %(provider)s and {_PART} = %(part)s
      {_OPEN_TO_ALL}
    order by j.due_at, j.id limit %(most_rows)s for update of j skip locked
), chosen as (
    select id, payload_bytes from (
        select id, payload_bytes, sum(payload_bytes) over w as bytes, row_number() over w as place
        from waiting window w as (order by due_at, id)
    ) summed where bytes <= %(most_bytes)s or place = 1
), made as (
    insert into provider_batches (id, provider, part, state, rows, payload_bytes)
    select %(id)s::uuid, %(provider)s, %(part)s, 'gathered', count(*), sum(payload_bytes) from chosen having count(*) > 0
    returning id
), claimed as (
    update jobs j set state = 'running', attempt = j.attempt + 1, lease_token = nextval('lease_tokens'),
                      lease_owner = 'batch:' || %(id)s, lease_until = now() + {LEASE_S} * interval '1 second',
                      not_before = null
    from chosen c where j.id = c.id and j.state = 'routed'
    returning j.id, j.attempt, j.lease_token, j.route -> j.route_index::int as r
), begun as (
    insert into attempts (job_id, number, provider, model, service, reason, worker, estimate_usd)
    select c.id, c.attempt, r ->> 'provider', r ->> 'model', r ->> 'service', r ->> 'reason', 'batch:' || %(id)s,
           (r ->> 'estimate_usd')::numeric from claimed c
), listed as (
    insert into provider_batch_rows (job_id, number, batch_id, token)
    select c.id, c.attempt, m.id, c.lease_token from claimed c cross join made m
)
select count(*) as rows from claimed
"""  # noqa: S608
"""Claim rows for a new batch: attempts, batch and rows are there before anything is sent."""

HOLD: Final = """
update provider_batches b set holder = %(holder)s, held_until = now() + %(hold_s)s * interval '1 second'
where b.id in (
    select id from provider_batches where state <> 'ended' and look_at <= now() and (held_until is null or held_until < now())
    order by look_at limit %(most)s for update skip locked
)
returning b.id::text, b.provider, b.part, b.account, b.state, b.rows, b.provider_id, b.not_ours, b.tries,
          b.cancel_at is not null as is_cancelled,
          extract(epoch from b.sent_at)::float8 as sent_at, extract(epoch from now() - b.gathered_at)::float8 as age_s,
          extract(epoch from now() - b.sent_at)::float8 as sent_s
"""
"""Batches that are due to be looked at, for this poller alone until it lets go or has been silent for `hold_s`."""

KEEP: Final = """
update provider_batches set held_until = now() + %(hold_s)s * interval '1 second'
where id = any(%(ids)s::uuid[]) and holder = %(holder)s returning id::text
"""

LET_GO: Final = """
update provider_batches set holder = null, held_until = null, look_at = now() + %(wait_s)s * interval '1 second',
                   error = %(error)s
where id = %(id)s and holder = %(holder)s and state <> 'ended' returning id::text
"""

SENDING: Final = """
update provider_batches b set state = 'sending', account = %(account)s, sent_at = now(), tries = tries + 1, not_ours = '{}',
                     rows = %(rows)s
where b.id = %(id)s and b.holder = %(holder)s and b.state = 'gathered'
  and not exists (select from provider_batches o where o.provider = b.provider and o.account = %(account)s and o.state = 'sending')
returning b.id::text, b.tries
"""
"""Written before the provider is asked to create it: after a crash it is this batch that has to be looked for."""

SENT: Final = """
update provider_batches set state = 'sent', provider_id = %(provider_id)s, error = null
where id = %(id)s and holder = %(holder)s and state = 'sending' returning id::text
"""
NOT_SENT: Final = """
update provider_batches set state = 'gathered', provider_id = null, account = null
where id = %(id)s and holder = %(holder)s and state in ('sending', 'sent') returning id::text
"""
NOT_OURS: Final = """
update provider_batches set state = 'sending', provider_id = null, not_ours = not_ours || %(provider_id)s::text
where id = %(id)s and holder = %(holder)s and state = 'sent' returning id::text
"""
CANCELLING: Final = """
update provider_batches set cancel_at = now() where id = %(id)s and holder = %(holder)s and state = 'sent' returning id::text
"""
ENDED: Final = """
update provider_batches b set state = 'ended', ended_at = now(), holder = null, held_until = null
where b.id = %(id)s and b.holder = %(holder)s
  and not exists (select from provider_batch_rows r where r.batch_id = b.id and r.state = 'open')
returning b.id::text
"""
KNOWN_IDS: Final = """
select provider_id from provider_batches where provider = %(provider)s and provider_id is not null
  and sent_at > to_timestamp(%(since)s) - interval '1 hour'
"""
"""Batches at a provider that are known to be ours, of about that time."""

ROWS: Final = """
select j.id::text, r.number as attempt, r.token as lease_token, j.lease_token = r.token as is_live, j.used, j.losses,
       j.route, j.route_index, j.intent, j.tenant, j.priority, j.stream, j.run_id::text, j.payload_bytes,
       extract(epoch from j.deadline_at - now())::float8 as slack_s, extract(epoch from j.due_at - now())::float8 as due_s,
       p.body as payload, a.provider, a.model, a.service, a.reason, a.estimate_usd,
       j.reply_to, j.error_code, j.prefix, j.prefix_bytes, j.submitted_at, j.traceparent,
       case when r.number > 1 then (select jsonb_agg(d.detail order by d.id) from decisions d
                                    where d.job_id = j.id and d.detail ? 'said') end as said,
       (select count(*) from attempts e where e.job_id = j.id and e.number < r.number and e.state <> 'released'
          and e.model = a.model and e.service = a.service) as earlier_on_lane,
       exists (select from budgets b where (b.scope, b.subject) in
                   (('tenant', j.tenant), ('key', j.key_id), ('run', j.run_id::text))) as has_budget
from provider_batch_rows r join jobs j on j.id = r.job_id join attempts a on a.job_id = r.job_id and a.number = r.number
left join payloads p on p.job_id = j.id
where r.batch_id = %(id)s and r.state = 'open' and (%(ids)s::uuid[] is null or r.job_id = any(%(ids)s::uuid[]))
order by j.due_at, j.id
"""
"""Open rows with all that an attempt needs; `is_live` = the job still waits for this row."""

NAMES: Final = (
    "select job_id || '-' || number as name from provider_batch_rows where batch_id = %(id)s and state = 'open'"
)

LIVE: Final = """
select count(*) filter (where j.lease_token = r.token) as live, count(*) as open
from provider_batch_rows r join jobs j on j.id = r.job_id where r.batch_id = %(id)s and r.state = 'open'
"""

CLOSE_ROWS: Final = """
update provider_batch_rows r set state = i.state, ended_at = now()
from unnest(%(jobs)s::uuid[], %(states)s::text[]) as i(job_id, state)
where r.job_id = i.job_id and r.batch_id = %(batch)s and r.state = 'open'
"""

# --- leaving the lane (control) -----------------------------------------------------------------------------------------

HEDGE: Final = """
with late as (
    select j.id, j.state, j.attempt, j.route_index, extract(epoch from j.due_at - now())::float8 as due_s,
           (select min(n) - 1 from jsonb_array_elements(j.route) with ordinality as c(lane, n)
            where n > j.route_index + 1 and c.lane ->> 'service' <> 'batch') as next
    from jobs j
    where j.provider = 'batch' and j.state in ('routed', 'running') and not j.cancel_requested
      and j.due_at < now() + (j.route -> j.route_index::int ->> 'leave_s')::float8 * interval '1 second'
    order by j.due_at limit %(limit)s for update of j skip locked
), moved as (
    update jobs j set state = 'routed', route_index = l.next, provider = j.route -> l.next::int ->> 'provider',
                      published_at = now(), lease_token = null, lease_owner = null, lease_until = null
    from late l where j.id = l.id and l.next is not null
    returning j.id, j.state, j.provider, j.priority, j.intent, j.route -> j.route_index::int as r, l.due_s, l.attempt,
              l.state as was
), noted as (
    insert into decisions (job_id, attempt, outcome, reason)
    select id, case was when 'running' then attempt end, 'hedge',
           'due in ' || round(greatest(due_s, 0)) || ' s: leaves the batch lane for ' || (r ->> 'model') || ' '
           || (r ->> 'service') || case was when 'running'
              then '; an answer of the batch that comes all the same is paid and not used' else '' end
    from moved
)
select id::text, state, provider, priority, intent, r ->> 'model' as model from moved
"""
"""Index jobs_batched."""

LEAVE_CANCELLED: Final = """
update jobs j set state = 'cancelled', finished_at = now(), error_code = 'cancelled', error = 'cancelled on request',
                  lease_token = null, lease_owner = null, lease_until = null
where j.id in (select id from jobs where provider = 'batch' and state = 'running' and cancel_requested
               limit %(limit)s for update skip locked)
returning j.id::text, j.state
"""
"""A row of a batch cannot be called back; its job need not wait for it."""

# --- how long lanes take ----------------------------------------------------------------------------------------------

LANE_TIMES: Final = """
with recent as (
    select provider, model, service, worker, state, started_at,
           extract(epoch from ended_at - started_at)::float8 as seconds
    from attempts
    where started_at > now() - %(window_s)s * interval '1 second' and ended_at is not null
      and state in ('succeeded', 'weak', 'failed', 'broken', 'unknown', 'fenced')
    order by started_at desc limit 50000
), lanes as (
    select provider || '/' || model || '/' || service as lane, * from recent
    union all
    select provider || '/*/' || service, * from recent
), each as (
    select lane, service, seconds, started_at from lanes where service <> 'batch' and state in ('succeeded', 'weak')
    union all
    -- The rows of a batch end together: one observation.
    select lane, service, avg(seconds), min(started_at) from lanes
    where service = 'batch' and state in ('succeeded', 'weak', 'fenced') group by lane, service, worker
), observed as (
    select lane, seconds from (
        select lane, service, seconds, row_number() over (partition by lane order by started_at desc) as age from each
    ) numbered where age <= case service when 'batch' then %(batches)s else %(calls)s end
), answered as (
    select lane, count(*) filter (where state in ('succeeded', 'weak', 'fenced'))::float8 / count(*) as share
    from lanes group by lane
)
select o.lane, count(*) as count, min(a.share) as answered,
       percentile_cont(%(ranks)s::float8[]) within group (order by o.seconds) as seconds
from observed o join answered a using (lane) group by o.lane
"""
"""By lane, and for all models of a provider together (`provider/*/service`). Index attempts_begun."""
