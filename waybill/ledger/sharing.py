"""One call, many answers: who asks a question first, who waits for that, and handing the answer on.

`answers` names for each question the job that asks or has asked it. The job that makes the call pays for it; a job that is
given the answer gets an attempt of service `reuse` that cost nothing and names its source, so that what was spent is on
the ledger once. Tenants cannot meet here: the tenant is part of a question's key, and _SERVE compares it again.
"""

from __future__ import annotations

from typing import Final

ASK: Final = """
with input as (
    select * from unnest(%(ids)s::uuid[], %(keys)s::text[], %(waits)s::float8[]) with ordinality
        as t(id, key, wait_s, place)
), firsts as (
    select distinct on (key) key, id from input order by key, place
), led as (
    insert into answers as a (key, job_id) select key, id from firsts order by key
    on conflict (key) do update set job_id = excluded.job_id, asked_at = now()
    -- The one who asked before has no answer that may be given again, and none to come.
    where a.job_id <> excluded.job_id and not exists (
        select from jobs s left join results r on r.job_id = s.id
        where s.id = a.job_id and (
            s.state not in ('succeeded', 'failed', 'cancelled', 'dead')
            or s.state = 'succeeded' and s.finished_at > now() - %(ttl_s)s::float8 * interval '1 second'
               and octet_length(r.body) <= %(most_bytes)s))
    returning key, job_id
), asked as (
    select i.id, i.wait_s, coalesce(l.job_id, a.job_id) as source
    from input i left join led l using (key) left join answers a on a.key = i.key
), seen as (
    select asked.id, asked.source, asked.wait_s, s.state, s.priority
    from asked left join jobs s on s.id = asked.source
), waiting as (
    update jobs j set waits_for = n.source, waits_until = now() + n.wait_s * interval '1 second'
    from seen n
    where j.id = n.id and j.state = 'queued' and n.source <> n.id and n.wait_s > 0
      and n.state not in ('succeeded', 'failed', 'cancelled', 'dead')
      -- Interactive work does not queue up behind a batch.
      and (n.priority = 'hi' or j.priority = 'lo' or n.state = 'running')
    returning j.id
)
select n.id::text, n.source::text,
       case when n.source = n.id then 'first'
            when n.source is null then 'unseen'
            when n.state = 'succeeded' then 'answered'
            when w.id is not null then 'waits'
            else 'alone' end as part
from seen n left join waiting w on w.id = n.id
"""
"""What becomes of queued jobs with a question. `first`: it leads and makes the call. `answered`: ANSWER gives it an earlier
answer. `waits`: for the call of another job. `alone`: it calls for itself. `unseen`: another dispatcher is just asking."""

_SERVE: Final = """
known as (
    select due.id, due.source, s.state, s.route, s.route_index, s.provider, r.body, r.attempt as answering
    from due left join jobs s on s.id = due.source and s.tenant = due.tenant
    left join results r on r.job_id = s.id and s.state = 'succeeded'
), answered as (
    update jobs j set state = 'succeeded', route = k.route, route_index = k.route_index, provider = k.provider,
        attempt = j.attempt + 1, error_code = null, error = null, waits_for = null, finished_at = now()
    from known k where j.id = k.id and k.body is not null
    returning j.id, j.attempt, j.stream, j.reply_to, k.source, k.answering, k.body
), called as (
    insert into attempts (job_id, number, provider, model, service, reason, state, worker, ended_at, served_model, stop,
        input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, thinking_tokens,
        cost_usd, cost_source, flagship_usd, list_usd, uncached_usd, estimate_usd, price_version, source_job)
    select n.id, n.attempt, a.provider, a.model, 'reuse', 'answered before, as job ' || n.source, 'succeeded',
        %(owner)s, now(), a.served_model, a.stop, 0, 0, 0, 0, 0, 0, 0, 'nothing',
        a.flagship_usd, a.list_usd, a.uncached_usd, 0, a.price_version, n.source
    from answered n join attempts a on a.job_id = n.source and a.number = n.answering
), kept as (
    insert into results (job_id, attempt, body) select id, attempt, body from answered on conflict (job_id) do nothing
), noted as (
    insert into decisions (job_id, attempt, outcome, reason)
    select id, attempt, 'reuse', 'the same question as job ' || source || ': its answer is given again at no cost'
    from answered
), freed as (
    -- A cancelled leader says nothing about the question, so the next one asks it; after a failure, or when the wait is
    -- over, each goes by itself and nobody waits for it.
    update jobs j set waits_for = null, waits_until = null,
        question = case when k.state = 'cancelled' then j.question end
    from known k where j.id = k.id and k.body is null and j.waits_for is not null
    returning j.id
)
select id::text, true as is_answered, stream, reply_to, attempt, body from answered
union all
select id::text, false, false, null, 0::smallint, null from freed
"""

ANSWER: Final = (
    """
with due as (
    select w.id, w.tenant, p.source, w.waits_until
    from unnest(%(ids)s::uuid[], %(sources)s::uuid[]) as p(id, source) join jobs w on w.id = p.id
    where w.state = 'queued' and not w.cancel_requested
    order by w.id for update of w skip locked
), """  # noqa: S608  # our own constants, no input
    + _SERVE
)
"""Give the jobs `ids` the answers of the jobs `sources`."""

_WAITING: Final = "w.state = 'queued' and w.waits_for is not null and not w.cancel_requested"

HAND_ON: Final = (
    f"""
with due as (
    select w.id, w.tenant, w.waits_for as source, w.waits_until from jobs w
    where {_WAITING} and w.waits_for = any(%(ended)s::uuid[])
    order by w.id limit %(limit)s for update of w skip locked
), """  # noqa: S608  # our own constant, no input
    + _SERVE
)
"""Serve those who wait for jobs that have ended."""

SWEEP: Final = (
    f"""
with ended as (
    select f.source from (select distinct waits_for as source from jobs w where {_WAITING}) f
    where not exists (select from jobs s where s.id = f.source
                      and s.state not in ('succeeded', 'failed', 'cancelled', 'dead'))
), due as (
    select w.id, w.tenant, w.waits_for as source, w.waits_until from jobs w
    where {_WAITING} and (w.waits_until < now() or w.waits_for in (select source from ended))
    order by w.id limit %(limit)s for update of w skip locked
), """  # noqa: S608
    + _SERVE
)
"""Serve everybody whose wait is over, whoever should have told them. Index jobs_waits holds the whole list."""

FORGET: Final = """
delete from answers where key in (
    select a.key from answers a left join jobs s on s.id = a.job_id
    where a.asked_at < now() - %(ttl_s)s::float8 * interval '1 second'
      and (s.finished_at is null and s.state is null or s.finished_at < now() - %(ttl_s)s::float8 * interval '1 second')
       or a.asked_at < (select asked_at from answers order by asked_at desc offset %(most)s limit 1)
    order by a.asked_at limit 5000 for update of a skip locked)
"""
"""Drop questions whose answer is too old to be given again, and the oldest above the number that is kept."""
