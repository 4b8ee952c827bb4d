"""The job protocol in SQL: each change of state is one statement, guarded by the state it starts from.

All statements take arrays, so that a hundred jobs cost one round trip, and all are harmless when carried out twice.
Times are the database's (`now()`): a worker's clock plays no part in a lease.
"""

from __future__ import annotations

from typing import Final

# --- submit -----------------------------------------------------------------------------------------------------------

INSERT_JOBS: Final = """
with input as (
    select * from unnest(
        %(ids)s::uuid[], %(run_ids)s::uuid[], %(seqs)s::int[], %(tenants)s::text[], %(intents)s::text[],
        %(priorities)s::text[], %(keys)s::text[], %(hashes)s::text[], %(bytes)s::int[], %(max_outputs)s::int[],
        %(models)s::text[], %(local_onlys)s::bool[], %(qualities)s::float8[], %(needs)s::text[], %(streams)s::bool[],
        %(deadlines)s::float8[], %(dues)s::float8[], %(payloads)s::text[], %(questions)s::text[], %(prefixes)s::text[],
        %(prefix_bytes)s::int[], %(key_ids)s::text[], %(reply_tos)s::text[]
    ) as t(id, run_id, seq, tenant, intent, priority, idempotency_key, request_hash, payload_bytes, max_output_tokens,
           model, local_only, quality, needs, stream, deadline_s, due_s, payload, question, prefix, prefix_bytes,
           key_id, reply_to)
), inserted as (
    insert into jobs (id, run_id, seq, tenant, intent, priority, idempotency_key, request_hash, payload_bytes,
                      max_output_tokens, model, local_only, quality, needs, stream, deadline_at, due_at, question, prefix,
                      prefix_bytes, key_id, reply_to, traceparent)
    select id, run_id, seq, tenant, intent, priority, idempotency_key, request_hash, payload_bytes, max_output_tokens,
           model, local_only, quality, string_to_array(needs, ','), stream, now() + deadline_s * interval '1 second',
           now() + due_s * interval '1 second', question, prefix, prefix_bytes, key_id, reply_to, %(traceparent)s::text
    from input
    on conflict do nothing
    returning id
), stored as (
    insert into payloads (job_id, body) select i.id, i.payload from input i join inserted using (id)
)
select id::text, quick.* from inserted
-- Whoever waits at a gateway has been told nothing yet, and the claim before the call takes this with it to the disk. If
-- Postgres dies sooner there is no job and no call, and the gateway says so (mailroom.py). By a key somebody else could be
-- told of it.
left join (
    select set_config('synchronous_commit', 'off', true)
    where not exists (select from input where reply_to is null or idempotency_key is not null)
) as quick(commits) on true
"""

JOBS_BY_KEY: Final = """
select j.id::text, j.tenant, j.idempotency_key, j.request_hash, j.state
from unnest(%(tenants)s::text[], %(keys)s::text[]) as k(tenant, key)
join jobs j on j.tenant = k.tenant and j.idempotency_key = k.key
"""

OPEN_RUN: Final = """
insert into runs (id, tenant, name, fingerprint) values (%(id)s, %(tenant)s, %(name)s, %(fingerprint)s)
on conflict (tenant, fingerprint) do update set name = excluded.name
returning id::text, state, created_at
"""

# --- dispatch ---------------------------------------------------------------------------------------------------------

ROUTE: Final = """
with input as (
    select * from unnest(%(ids)s::uuid[], %(intents)s::text[], %(providers)s::text[], %(routes)s::text[],
                         %(reasons)s::text[], %(details)s::text[]) as t(id, intent, provider, route, reason, detail)
), moved as (
    -- The intent changes for untagged jobs alone.
    update jobs j set state = 'routed', intent = i.intent, provider = i.provider, route = i.route::jsonb, route_index = 0,
                      published_at = now()
    from input i where j.id = i.id and j.state = 'queued'
    returning j.id
), noted as (
    insert into decisions (job_id, outcome, reason, detail, policy_version)
    select i.id, 'route', i.reason, i.detail::jsonb, %(policy)s from input i join moved using (id)
)
-- Not waited for on disk: if Postgres dies first the job is still queued and is routed again, and a claim that follows
-- takes this with it to the disk. A call somebody waits for is quicker by one flush.
select id::text from moved cross join (select set_config('synchronous_commit', 'off', true)) as quick
"""

REFUSE: Final = """
with input as (
    select * from unnest(%(ids)s::uuid[], %(codes)s::text[], %(errors)s::text[]) as t(id, code, error)
), moved as (
    update jobs j set state = 'failed', error_code = i.code, error = i.error, finished_at = now()
    from input i where j.id = i.id and j.state = 'queued'
    returning j.id, j.reply_to
), noted as (
    insert into decisions (job_id, outcome, reason, policy_version)
    select i.id, 'no_route', i.error, %(policy)s from input i join moved using (id)
)
select id::text, reply_to from moved
"""

# --- claim, renew, settle ---------------------------------------------------------------------------------------------

CLAIM: Final = """
with claimed as (
    update jobs j set state = 'running', attempt = j.attempt + 1, lease_token = nextval('lease_tokens'),
                      lease_owner = %(owner)s, lease_until = now() + %(lease_s)s * interval '1 second',
                      not_before = null
    where j.id = any(%(ids)s::uuid[]) and j.state = 'routed' and j.provider = any(%(providers)s::text[])
      and not j.cancel_requested
      -- Paused: the job stays where it is; `waybill resume` rings for it again.
      and not exists (select from runs r where r.id = j.run_id and r.state = 'paused')
      and j.intent not in (select name from holds where kind = 'intent')
    returning j.id, j.attempt, j.lease_token, j.used, j.losses, j.route, j.route_index, j.intent, j.tenant, j.priority,
              j.stream, j.run_id, j.key_id, j.payload_bytes, j.reply_to, j.error_code,
              j.prefix, j.prefix_bytes, j.submitted_at, j.traceparent,
              extract(epoch from j.deadline_at - now())::float8 as slack_s,
              extract(epoch from j.due_at - now())::float8 as due_s
), begun as (
    insert into attempts (job_id, number, provider, model, service, reason, worker, estimate_usd)
    select c.id, c.attempt, r ->> 'provider', r ->> 'model', r ->> 'service', r ->> 'reason', %(owner)s,
           (r ->> 'estimate_usd')::numeric
    from claimed c, lateral (select c.route -> c.route_index::int as r) as candidate
)
select c.id::text, c.attempt, c.lease_token, c.used, c.losses, c.route, c.route_index, c.intent, c.tenant, c.priority,
       c.stream, c.run_id::text, c.payload_bytes, c.reply_to, c.error_code, c.prefix, c.prefix_bytes, c.slack_s, c.due_s,
       c.submitted_at, c.traceparent,
       p.body as payload,
       (select count(*) from attempts a where a.job_id = c.id and a.state <> 'released'
          and a.model = c.route -> c.route_index::int ->> 'model'
          and a.service = c.route -> c.route_index::int ->> 'service') as earlier_on_lane,
       case when c.attempt > 1 then (select jsonb_agg(d.detail order by d.id) from decisions d
                                     where d.job_id = c.id and d.detail ? 'said') end as said,
       exists (select from budgets b where (b.scope, b.subject) in
                   (('tenant', c.tenant), ('key', c.key_id), ('run', c.run_id::text))) as has_budget
from claimed c join payloads p on p.job_id = c.id
"""

RENEW: Final = """
update jobs j set lease_until = now() + %(lease_s)s * interval '1 second'
from unnest(%(ids)s::uuid[], %(tokens)s::bigint[]) as t(id, token)
where j.id = t.id and j.lease_token = t.token and j.state = 'running'
returning j.id::text, j.cancel_requested
"""

SETTLE: Final = """
with input as (
    select * from unnest(
        %(ids)s::uuid[], %(tokens)s::bigint[], %(numbers)s::smallint[],
        %(states)s::text[], %(indexes)s::smallint[], %(delays)s::float8[], %(uses)s::smallint[],
        %(codes)s::text[], %(errors)s::text[], %(bodies)s::text[],
        %(outcomes)s::text[], %(reasons)s::text[], %(details)s::text[],
        %(attempt_states)s::text[], %(first_tokens)s::float8[], %(served)s::text[], %(request_ids)s::text[],
        %(stops)s::text[], %(inputs)s::int[], %(outputs)s::int[], %(reads)s::int[], %(writes)s::int[],
        %(writes_1h)s::int[], %(thinking)s::int[], %(costs)s::numeric[], %(sources)s::text[], %(flagships)s::numeric[],
        %(lists)s::numeric[], %(uncacheds)s::numeric[], %(cpus)s::float8[],
        %(price_versions)s::text[], %(policies)s::text[]
    ) as t(id, token, number, state, route_index, delay_s, uses, code, error, body, outcome, reason, detail,
           attempt_state, first_token_s, served, request_id, stop, input, output, read, write, write_1h, thinking,
           cost, source, flagship, list, uncached, cpu, price_version, policy)
), moved as (
    update jobs j set
        state = case when j.cancel_requested and i.state in ('routed', 'parked') then 'cancelled' else i.state end,
        route_index = coalesce(i.route_index, j.route_index),
        provider = case j.route -> coalesce(i.route_index, j.route_index)::int ->> 'service'
                   when 'batch' then 'batch'
                   else j.route -> coalesce(i.route_index, j.route_index)::int ->> 'provider' end,
        used = j.used + i.uses,
        not_before = case when i.state = 'parked' and not j.cancel_requested then now() + i.delay_s * interval '1 second' end,
        error_code = i.code, error = i.error, published_at = now(),
        lease_token = null, lease_owner = null, lease_until = null,
        finished_at = case when i.state in ('succeeded', 'failed', 'cancelled', 'dead')
                             or j.cancel_requested then now() end
    from input i where j.id = i.id and j.lease_token = i.token and j.state = 'running'
    returning j.id, j.state
), answered as (
    insert into results (job_id, attempt, body)
    select i.id, i.number, i.body from input i join moved m using (id) where i.body is not null and m.state = 'succeeded'
    on conflict (job_id) do nothing
), closed as (
    update attempts a set
        -- The job was taken from us meanwhile: the money is spent all the same, the answer is not used.
        state = case when m.id is null and i.attempt_state <> 'released' then 'fenced' else i.attempt_state end,
        ended_at = now(), first_token_s = i.first_token_s, served_model = i.served, request_id = i.request_id,
        stop = i.stop, input_tokens = i.input, output_tokens = i.output, cache_read_tokens = i.read,
        cache_write_tokens = i.write, cache_write_1h_tokens = i.write_1h, thinking_tokens = i.thinking,
        cost_usd = i.cost, cost_source = i.source, flagship_usd = case when m.state = 'succeeded' then i.flagship end,
        list_usd = case when m.state = 'succeeded' then i.list end,
        uncached_usd = case when m.state = 'succeeded' then i.uncached end,
        cpu_s = i.cpu, price_version = i.price_version, error_code = i.code, error = i.error
    from input i left join moved m using (id)
    where a.job_id = i.id and a.number = i.number and a.state in ('started', 'unknown')
), noted as (
    insert into decisions (job_id, attempt, outcome, reason, detail, policy_version)
    select i.id, i.number, i.outcome, i.reason, i.detail::jsonb, i.policy from input i join moved using (id)
)
select m.id::text, m.state, exists (select from jobs w where w.waits_for = m.id and w.state = 'queued') as is_awaited
from moved m
union
-- Asked again after a lost connection: what the first try had already done counts as done.
select j.id::text, j.state, false from input i join results r on r.job_id = i.id and r.attempt = i.number join jobs j on j.id = i.id
"""

# Claimed but not admitted by the limiter: the claim is undone, its number and its row in `attempts` included.
PARK: Final = """
with input as (
    select * from unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(numbers)s::smallint[], %(delays)s::float8[])
        as t(id, token, number, delay_s)
), moved as (
    update jobs j set
        state = case when j.cancel_requested then 'cancelled' else 'parked' end,
        attempt = j.attempt - 1,
        not_before = case when not j.cancel_requested then now() + i.delay_s * interval '1 second' end,
        error_code = case when j.cancel_requested then 'cancelled' else 'waiting_for_quota' end, error = null,
        published_at = now(), lease_token = null, lease_owner = null, lease_until = null,
        finished_at = case when j.cancel_requested then now() end
    from input i where j.id = i.id and j.lease_token = i.token and j.state = 'running'
    returning j.id, j.state
), undone as (
    delete from attempts a using input i join moved using (id)
    where a.job_id = i.id and a.number = i.number and a.state = 'started'
)
select id::text, state from moved
union all
-- Sent again after a lost answer: what the first try has parked still has to stand in line.
select j.id::text, j.state from jobs j join input i using (id)
where j.state = 'parked' and j.error_code = 'waiting_for_quota' and j.attempt = i.number - 1
"""

# --- control ----------------------------------------------------------------------------------------------------------

RELEASE_DUE: Final = """
update jobs j set state = case when j.cancel_requested then 'cancelled' else 'routed' end, published_at = now(),
    finished_at = case when j.cancel_requested then now() end, not_before = null
where j.id in (select id from jobs where state = 'parked' and not_before <= now() order by not_before
               limit %(limit)s for update skip locked)
returning j.id::text, j.state, j.provider, j.priority, j.intent, j.route -> j.route_index::int ->> 'model' as model
"""

RELEASE_WOKEN: Final = """
update jobs j set state = 'routed', published_at = now(), not_before = null
where j.id = any(%(ids)s::uuid[]) and j.state = 'parked' and j.error_code = 'waiting_for_quota'
returning j.id::text, j.state, j.provider, j.priority, j.intent, j.route -> j.route_index::int ->> 'model' as model
"""

# They stand in a line that was lost, or in none: these jobs (null = all) ask again, spread over the given time.
RELEASE_LINES: Final = """
update jobs set not_before = now() + random() * %(within_s)s * interval '1 second'
where state = 'parked' and error_code = 'waiting_for_quota' and (%(ids)s::uuid[] is null or id = any(%(ids)s))
returning id::text
"""

# Who should stand in a line by now and rely on being woken. Index jobs_parked.
_IN_LINE = """
from jobs where state = 'parked' and not_before > now() + %(within_s)s * interval '1 second'
  and error_code = 'waiting_for_quota' and published_at < now() - interval '5 seconds'
"""
COUNT_IN_LINE: Final = f"select count(*) as n {_IN_LINE}"
IN_LINE: Final = f"select id::text {_IN_LINE}"

RESCUE: Final = """
with lost as (
    select id from jobs where state = 'running' and lease_until < now() order by lease_until
    limit %(limit)s for update skip locked
), moved as (
    update jobs j set
        state = case when j.cancel_requested then 'cancelled'
                     when j.losses + 1 >= %(max_losses)s then 'dead' else 'routed' end,
        losses = j.losses + 1, used = j.used + 1, lease_token = null, lease_owner = null, lease_until = null,
        published_at = now(),
        error_code = 'worker_lost',
        error = 'the worker running attempt ' || j.attempt || ' was lost (' || (j.losses + 1) || ' so far)',
        finished_at = case when j.cancel_requested or j.losses + 1 >= %(max_losses)s then now() end
    from lost where j.id = lost.id
    returning j.id, j.state, j.provider, j.priority, j.intent, j.attempt, j.losses, j.route -> j.route_index::int as c
), unknown as (
    update attempts a set state = 'unknown', ended_at = now(), cost_usd = a.estimate_usd, cost_source = 'estimated',
        error_code = 'worker_lost', error = 'lease ended; the call may have been made and billed'
    from moved m where a.job_id = m.id and a.number = m.attempt and a.state = 'started'
), noted as (
    insert into decisions (job_id, attempt, outcome, reason)
    select id, attempt, 'lost', case state when 'dead' then 'worker lost ' || losses || ' times: put aside'
                                           else 'worker lost: sent again' end from moved
)
select id::text, state, provider, priority, intent, c ->> 'model' as model from moved
"""

# Only jobs that are on their way to a worker: what is queued the dispatcher finds by itself.
STALE: Final = """
with stale as (
    select j.id from jobs j left join runs r on r.id = j.run_id
    where (r.state is null or r.state = 'open') and j.intent not in (select name from holds where kind = 'intent')
      and j.state = 'routed' and j.provider || '.' || j.priority = any(%(short_queues)s::text[])
      and j.published_at < now() - %(routed_s)s * interval '1 second'
    order by j.published_at limit %(limit)s for update of j skip locked
)
update jobs j set published_at = now() from stale where j.id = stale.id
returning j.id::text, j.state, j.provider, j.priority, j.intent, j.route -> j.route_index::int ->> 'model' as model
"""

CANCEL: Final = """
with asked as (
    select id from jobs where id = any(%(ids)s::uuid[])
      and state not in ('succeeded', 'failed', 'cancelled', 'dead') for update
), moved as (
    update jobs j set cancel_requested = true,
        state = case when j.state = 'running' then j.state else 'cancelled' end,
        finished_at = case when j.state = 'running' then null else now() end, not_before = null,
        error_code = 'cancelled', error = 'cancelled on request'
    from asked where j.id = asked.id
    returning j.id, j.state
), noted as (
    insert into decisions (job_id, outcome, reason)
    select id, 'cancel', case state when 'running' then 'asked to cancel; the call is under way' else 'cancelled before a call' end
    from moved
)
select id::text, state from moved
"""

# --- read -------------------------------------------------------------------------------------------------------------

OUTCOMES: Final = """
select j.id::text, j.state, j.error_code, j.error, j.seq, j.finished_at, r.body, r.attempt as result_attempt,
       p.body as payload, a.provider, a.model, a.service, a.served_model, a.reason, a.stop,
       a.input_tokens, a.output_tokens, a.cache_read_tokens, a.cache_write_tokens, a.cache_write_1h_tokens,
       a.thinking_tokens, t.calls, t.usd, t.unpriced, t.last_lane
from jobs j
left join results r on r.job_id = j.id
left join payloads p on p.job_id = j.id and %(with_payload)s
left join attempts a on a.job_id = j.id and a.number = r.attempt
left join lateral (
    select count(*) filter (where state <> 'released' and service <> 'reuse') as calls, sum(cost_usd) as usd,
           count(*) filter (where cost_source = 'unpriced') as unpriced,
           (array_agg(provider || '/' || model || '/' || service order by number desc))[1] as last_lane
    from attempts where job_id = j.id
) t on true
where j.id = any(%(ids)s::uuid[]) and j.finished_at is not null
"""

JOB_STATES: Final = "select id::text, state from jobs where id = any(%(ids)s::uuid[])"
