"""How long text is kept, and its deletion, in SQL. Text goes, the ledger's rows stay: who called what, when, and for how much.

Text is what was asked (`payloads`), the answers (`results`, `answers`), uploads of the gateway (`files`), what webhooks were
sent, and the words in errors and reasons, which may quote either. All statements take a bounded number of rows, skip what
somebody else has in hand, and are harmless when carried out twice.
"""

from __future__ import annotations

from typing import Final

SET: Final = """
insert into retention (tenant, days) values (%(tenant)s, %(days)s) on conflict (tenant) do update set days = excluded.days
"""
UNSET: Final = "delete from retention where tenant = %(tenant)s returning days"
SHOW: Final = "select tenant, days from retention order by tenant"

_FORGET: Final = """
), asked as (
    delete from payloads p using chosen c where p.job_id = c.id
), answered as (
    delete from results r using chosen c where r.job_id = c.id
), shared as (
    delete from answers a using chosen c where a.job_id = c.id
), graded as (
    update grades g set note = null, detail = null from chosen c where g.job_id = c.id
), called as (
    update attempts a set error = null, reason = '' from chosen c where a.job_id = c.id
), decided as (
    update decisions d set reason = '(text deleted)', detail = null from chosen c where d.job_id = c.id
), ended as (
    update jobs j set error = null, idempotency_key = case when %(keys_too)s then null else j.idempotency_key end
    from chosen c where j.id = c.id
)
select id::text from chosen
"""

PURGE: Final = (
    """
with bound as (
    -- A job's id begins with the time it was submitted (UUID version 7), and it ended later: younger ids are not read at all.
    select (lpad(to_hex((extract(epoch from now() - min(days) * interval '1 day') * 1000)::bigint), 12, '0')
            || repeat('0', 20))::uuid as id from retention
), chosen as (
    select p.job_id as id from payloads p join jobs j on j.id = p.job_id
    left join retention own on own.tenant = j.tenant left join retention others on others.tenant = '*'
    where p.job_id < (select id from bound) and j.finished_at is not null
      and j.finished_at < now() - coalesce(own.days, others.days) * interval '1 day'
    order by p.job_id limit %(limit)s for update of p skip locked
"""
    + _FORGET
)
"""Forget the text of up to `limit` jobs whose time is over. Index: the primary key of `payloads`."""

PURGE_UPLOADS: Final = """
delete from files where id in (
    select f.id from files f left join retention own on own.tenant = f.tenant left join retention others on others.tenant = '*'
    where f.created_at < now() - coalesce(own.days, others.days) * interval '1 day'
      and not exists (select from batches b where b.input_file_id = f.id and b.ended_at is null)
    limit %(limit)s for update of f skip locked
) returning id
"""

PURGE_BATCHES: Final = """
with old as (
    select b.id from batches b
    left join retention own on own.tenant = b.tenant left join retention others on others.tenant = '*'
    where b.ended_at < now() - coalesce(own.days, others.days) * interval '1 day'
      and (b.metadata is not null or b.headers <> '{}'
           or exists (select from batch_rows r where r.batch_id = b.id and r.error::jsonb ->> 'message' <> '(text deleted)'))
    order by b.ended_at limit 10 for update of b skip locked
), rows as (
    -- The kind of the refusal stays: the batch's results can still be read.
    update batch_rows r set error = (r.error::jsonb || '{"message": "(text deleted)", "param": null}')::text
    where (r.batch_id, r.seq) in (
        select t.batch_id, t.seq from batch_rows t join old on old.id = t.batch_id
        where t.error::jsonb ->> 'message' <> '(text deleted)' limit %(limit)s)
    returning r.seq
), made as (
    update batches b set metadata = null, headers = '{}' from old where b.id = old.id
)
select id from old
"""
"""Forget what clients said of up to ten batches, and the words of refused requests. The requests themselves are jobs."""

PURGE_DELIVERIES: Final = """
delete from webhook_deliveries where id in (
    select d.id from webhook_deliveries d join webhooks w on w.id = d.webhook_id
    left join retention own on own.tenant = w.tenant left join retention others on others.tenant = '*'
    where d.state <> 'waiting'
      -- Not within a day: what is looked for again (webhooks.FIND_NEWS) must not be told twice.
      and d.created_at < now() - greatest(1, least(30, coalesce(own.days, others.days))) * interval '1 day'
    order by d.created_at limit %(limit)s for update of d skip locked
) returning id
"""
"""Webhooks' history is for finding faults: a month of it, less where the tenant's text is kept for less."""

PURGE_BROKEN_UPLOADS: Final = (
    "delete from files where not is_complete and created_at < now() - interval '1 day' returning id"
)

ERASE: Final = (
    """
with chosen as (
    select j.id from jobs j where j.tenant = %(tenant)s and j.finished_at is not null
      and (exists (select from payloads p where p.job_id = j.id) or exists (select from results r where r.job_id = j.id)
           or j.idempotency_key is not null)
    limit %(limit)s for update skip locked
"""
    + _FORGET
)
"""Forget the text of up to `limit` finished jobs of a tenant, whatever their age."""

UNFINISHED: Final = """
select id::text from jobs where tenant = %(tenant)s and finished_at is null and not cancel_requested limit %(limit)s
"""
STILL_OPEN: Final = "select count(*) as jobs from jobs where tenant = %(tenant)s and finished_at is null"

ERASE_REST: Final = """
with uploads as (
    delete from files where tenant = %(tenant)s and not exists (
        select from batches b where b.input_file_id = files.id and b.ended_at is null) returning id
), rows as (
    delete from batch_rows r using batches b where b.id = r.batch_id and b.tenant = %(tenant)s and b.ended_at is not null
), made as (
    update batches set metadata = null, headers = '{}' where tenant = %(tenant)s and ended_at is not null
), told as (
    delete from webhook_deliveries d using webhooks w where w.id = d.webhook_id and w.tenant = %(tenant)s
), named as (
    update runs set name = '(erased)' where tenant = %(tenant)s
)
select count(*) as files from uploads
"""
