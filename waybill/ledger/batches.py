"""Files and batches in SQL. Every statement that serves a client has the tenant in it."""

from __future__ import annotations

from typing import Final

# --- files ------------------------------------------------------------------------------------------------------------

BEGIN_FILE: Final = """
insert into files (id, tenant, purpose, filename, batch_id) values (%(id)s, %(tenant)s, %(purpose)s, %(filename)s, %(batch)s)
"""
ADD_PART: Final = "insert into file_parts (file_id, number, body) values (%(id)s, %(number)s, %(body)s)"
END_FILE: Final = """
update files set bytes = %(bytes)s, is_complete = true where id = %(id)s
returning id, purpose, filename, bytes, created_at, batch_id
"""
DROP_FILE: Final = "delete from files where id = %(id)s"

FILES: Final = """
select f.id, f.purpose, f.filename, f.bytes, f.created_at, f.batch_id from files f
where f.tenant = %(tenant)s and f.is_complete and f.purpose in ('batch', 'batch_output')
  and (%(id)s::text is null or f.id = %(id)s) and (%(purpose)s::text is null or f.purpose = %(purpose)s)
  and (%(after)s::text is null or (f.created_at, f.id) < (select a.created_at, a.id from files a
                                                          where a.id = %(after)s and a.tenant = %(tenant)s))
order by f.created_at desc, f.id desc limit %(limit)s
"""
REMOVE_FILE: Final = """
delete from files where id = %(id)s and tenant = %(tenant)s and is_complete and purpose in ('batch', 'batch_output')
returning id
"""
PART: Final = "select body from file_parts where file_id = %(id)s and number = %(number)s"

# --- batches ----------------------------------------------------------------------------------------------------------

CREATE: Final = """
with run as (
    insert into runs (id, tenant, name, fingerprint) values (%(run)s, %(tenant)s, %(id)s, 'batch:' || %(id)s) returning id
)
insert into batches (id, tenant, key_id, dialect, endpoint, run_id, input_file_id, headers, metadata, total, expires_at)
select %(id)s, %(tenant)s, %(key_id)s, %(dialect)s, %(endpoint)s, run.id, %(file)s, %(headers)s::jsonb, %(metadata)s::jsonb,
       %(total)s, now() + interval '24 hours'
from run
returning id
"""

LIST: Final = """
select b.*, b.run_id::text as run from batches b
where b.tenant = %(tenant)s and b.dialect = %(dialect)s
  and (%(id)s::text is null or b.id = %(id)s)
  and (%(after)s::text is null or (b.created_at, b.id) < (select a.created_at, a.id from batches a
                                                          where a.id = %(after)s and a.tenant = %(tenant)s))
  and (%(before)s::text is null or (b.created_at, b.id) > (select a.created_at, a.id from batches a
                                                           where a.id = %(before)s and a.tenant = %(tenant)s))
order by b.created_at desc, b.id desc limit %(limit)s
"""

COUNTS: Final = """
select count(*) filter (where j.state = 'succeeded') as succeeded,
       count(*) filter (where j.state in ('failed', 'dead')) as failed
from jobs j where j.run_id = any(%(runs)s::uuid[])
"""
REFUSED: Final = "select count(*) as rows from batch_rows where batch_id = %(id)s and error is not null"

CANCEL: Final = """
update batches set status = 'cancelling', cancelling_at = coalesce(cancelling_at, now()), look_at = now()
where id = %(id)s and tenant = %(tenant)s and ended_at is null returning run_id::text as run
"""

REMOVE: Final = "delete from batches where id = %(id)s and tenant = %(tenant)s and ended_at is not null returning id"

TAKE: Final = """
update batches set look_at = now() + %(lease_s)s * interval '1 second'
where id = (select id from batches where ended_at is null and look_at <= now() order by look_at limit 1 for update skip locked)
returning *, run_id::text as run, extract(epoch from expires_at - now())::float8 as left_s,
          extract(epoch from now() - created_at)::float8 as age_s
"""
"""One batch for one gateway; taken up by another one if this one is lost."""

HOLD: Final = """
update batches set look_at = now() + %(for_s)s * interval '1 second' where id = %(id)s and ended_at is null returning status
"""

ADD_ROWS: Final = """
insert into batch_rows (batch_id, seq, custom_id, error)
select %(id)s, * from unnest(%(seqs)s::int[], %(custom_ids)s::text[], %(errors)s::text[]) on conflict do nothing
"""

BEGIN: Final = """
update batches set total = %(total)s, model = %(model)s, in_progress_at = now(),
    status = case status when 'validating' then 'in_progress' else status end
where id = %(id)s and in_progress_at is null
"""

FAIL: Final = """
update batches set status = 'failed', errors = %(errors)s::jsonb, ended_at = now() where id = %(id)s and ended_at is null
"""

IS_DONE: Final = "select not exists (select from jobs where run_id = %(run)s::uuid and finished_at is null) as done"

FINALIZE: Final = """
update batches set finalizing_at = coalesce(finalizing_at, now()),
    status = case status when 'in_progress' then 'finalizing' else status end
where id = %(id)s and ended_at is null
"""

END: Final = """
update batches set status = case when cancelling_at is null then %(status)s else 'cancelled' end, counts = %(counts)s::jsonb,
    output_file_id = %(output)s, error_file_id = %(error)s, ended_at = now()
where id = %(id)s and ended_at is null returning status
"""
"""A cancellation counts until this moment: who was told `cancelling` never reads `completed` after it."""

PAGE: Final = """
select r.seq, r.custom_id, r.error as refused, j.id::text, j.state, j.error_code, j.error
from batch_rows r left join jobs j on j.run_id = %(run)s::uuid and j.seq = r.seq
where r.batch_id = %(id)s and r.seq > %(after)s order by r.seq limit %(limit)s
"""
"""A batch's requests in their order, with the job of each that was accepted."""
