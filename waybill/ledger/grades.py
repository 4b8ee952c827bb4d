"""Grades in SQL: what users, imports, judges, shadows and audits say about answers; one table for all of them.

A source's grade of an item and model replaces its earlier one (index `grades_item`), so every statement may be sent twice.
"""

from __future__ import annotations

from typing import Final

FEEDBACK: Final = """
insert into grades (item, job_id, tenant, intent, model, source, score, cost_usd, note)
select j.id::text, j.id, j.tenant, j.intent, a.model, 'user', %(score)s, t.usd, %(note)s
from jobs j
join results r on r.job_id = j.id
join attempts a on a.job_id = j.id and a.number = r.attempt
cross join lateral (
    -- Failed tries of the same model are part of what its answer cost.
    select case when bool_and(cost_usd is not null) then sum(cost_usd) end as usd
    from attempts where job_id = j.id and model = a.model and state <> 'released'
) t
where j.id = %(job)s::uuid and (%(tenant)s::text is null or j.tenant = %(tenant)s)
on conflict (item, model, source) do update set
    score = excluded.score, cost_usd = excluded.cost_usd, note = excluded.note, at = now()
returning model
"""

ANSWERED: Final = """
select state from jobs where id = %(job)s::uuid and (%(tenant)s::text is null or tenant = %(tenant)s)
"""
