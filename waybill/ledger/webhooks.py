"""Webhooks in SQL: who wants to be told, what there is to tell, and which delivery is due.

What ended is found by looking (index jobs_finished), not by a trigger on every job: a fleet without webhooks pays nothing.
Looking again over the last seconds is harmless, because one thing is told to one webhook once (webhook_deliveries_once).
"""

from __future__ import annotations

from typing import Final

EVENTS: Final = ("job.finished", "run.finished", "batch.finished", "budget.alert")

CREATE: Final = """
insert into webhooks (id, tenant, url, events, description, secret)
values (%(id)s, %(tenant)s, %(url)s, %(events)s, %(description)s, %(secret)s) returning id, created_at
"""
LIST: Final = """
select id, url, events, description, created_at, disabled_at, disabled_why from webhooks
where tenant = %(tenant)s and (%(id)s::text is null or id = %(id)s) order by created_at, id
"""
REMOVE: Final = "delete from webhooks where id = %(id)s and tenant = %(tenant)s returning id"
ENABLE: Final = (
    "update webhooks set disabled_at = null, disabled_why = null where id = %(id)s and tenant = %(tenant)s returning id"
)

DELIVERIES: Final = """
select d.id, d.webhook_id, d.event, d.subject, d.state, d.tries, d.due_at, d.created_at, d.delivered_at, d.status, d.error
from webhook_deliveries d join webhooks w on w.id = d.webhook_id
where w.tenant = %(tenant)s and d.webhook_id = %(id)s order by d.created_at desc, d.id limit %(limit)s
"""
REDELIVER: Final = """
update webhook_deliveries d set state = 'waiting', due_at = now(), tries = 0, error = null
from webhooks w where w.id = d.webhook_id and w.tenant = %(tenant)s and d.id = %(id)s returning d.id
"""
ADD: Final = """
insert into webhook_deliveries (id, webhook_id, event, subject, payload)
select 'msg_' || replace(gen_random_uuid()::text, '-', ''), w.id, %(event)s, %(subject)s, %(payload)s
from webhooks w
where w.tenant = %(tenant)s and (%(webhook)s::text is null or w.id = %(webhook)s)
  and (%(webhook)s::text is not null or (w.disabled_at is null and %(event)s = any(w.events)))
on conflict (webhook_id, event, subject) do nothing
returning id
"""
"""Tell all webhooks of a tenant that want to hear of it; or one of them, whatever it wants (a test)."""

FIND_NEWS: Final = """
with wanting as materialized (
    select id, tenant, events, greatest(created_at, seen_until - interval '10 seconds') as since from webhooks
    where disabled_at is null for update skip locked
), jobs_ended as (
    select w.id as webhook, 'job.finished' as event, j.id || ' ' || extract(epoch from j.finished_at) as subject,
           json_build_object('id', j.id, 'state', j.state, 'intent', j.intent, 'error_code', j.error_code,
                             'finished_at', j.finished_at, 'usd', (select sum(cost_usd)::text from attempts where job_id = j.id))
               as data, j.finished_at as at
    from wanting w join jobs j on j.tenant = w.tenant and j.run_id is null and j.finished_at > w.since
    where 'job.finished' = any(w.events)
), runs_ended as (
    select w.id, 'run.finished', r.id || ' ' || extract(epoch from e.at),
           json_build_object('id', r.id, 'name', r.name, 'finished_at', e.at), e.at
    from wanting w cross join lateral (
        select j.run_id, max(j.finished_at) as at from jobs j
        where j.tenant = w.tenant and j.run_id is not null and j.finished_at > w.since - interval '1 minute'
        group by j.run_id having max(j.finished_at) < now() - interval '3 seconds'
    ) e join runs r on r.id = e.run_id
    where 'run.finished' = any(w.events) and not exists (select from batches b where b.run_id = r.id)
      and not exists (select from jobs j where j.run_id = r.id and j.finished_at is null)
), alerts as (
    select w.id, 'budget.alert', a.id::text,
           json_build_object('scope', b.scope, 'subject', b.subject, 'period', b.period, 'percent', a.share,
                             'spent_usd', a.spent_usd::text, 'cap_usd', a.cap_usd::text), a.at
    from wanting w
    join budgets b on (b.scope = 'tenant' and b.subject = w.tenant)
        or (b.scope = 'key' and b.subject in (select id from api_keys k where k.tenant = w.tenant))
        or (b.scope = 'run' and b.subject in (select id::text from runs r where r.tenant = w.tenant))
    join budget_alerts a on a.budget_id = b.id and a.at > w.since
    where 'budget.alert' = any(w.events)
), news as (
    select * from jobs_ended union all select * from runs_ended union all select * from alerts
), told as (
    insert into webhook_deliveries (id, webhook_id, event, subject, payload)
    select 'msg_' || replace(gen_random_uuid()::text, '-', ''), webhook, event, subject,
           json_build_object('type', event, 'timestamp', at, 'data', data)::text
    from news on conflict (webhook_id, event, subject) do nothing returning id
), seen as (
    update webhooks set seen_until = now() where id in (select id from wanting)
)
select count(*) as told from told
"""
"""Payloads name ids, states and money: no prompt and no answer."""

TAKE_DUE: Final = """
with due as (
    select d.id from webhook_deliveries d join webhooks w on w.id = d.webhook_id
    where d.state = 'waiting' and d.due_at <= now() and w.disabled_at is null
    order by d.due_at limit %(limit)s for update of d skip locked
)
update webhook_deliveries d set due_at = now() + %(lease_s)s * interval '1 second', tries = d.tries + 1
from due, webhooks w where d.id = due.id and w.id = d.webhook_id
returning d.id, d.webhook_id, d.payload, d.tries, w.url, w.secret
"""
"""Each delivery to one gateway; one that is lost with it is due again when the lease ends."""

DONE: Final = """
update webhook_deliveries set state = %(state)s, status = %(status)s, error = %(error)s,
    due_at = now() + %(wait_s)s * interval '1 second', delivered_at = case when %(state)s = 'delivered' then now() end
where id = %(id)s
"""
DISABLE: Final = """
update webhooks set disabled_at = coalesce(disabled_at, now()), disabled_why = %(why)s where id = %(id)s
"""
