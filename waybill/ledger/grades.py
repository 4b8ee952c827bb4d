"""Grades in SQL: what users, imports, judges, shadows and audits say about answers; one table for all of them.

A source's grade of an item and model replaces its earlier one (index `grades_item`), so every statement may be sent twice.
"""

from __future__ import annotations

from typing import Final

SINCE_S: Final = 30 * 86400.0
"""Grades older than this say nothing about today's models and prompts."""

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

BELIEVED: Final = "array_position(array['user', 'import', 'judge', 'shadow', 'audit'], g.source)"

STANDINGS: Final = f"""
with best as (
    -- One score per item and model: the source most to be believed.
    select distinct on (g.item, g.model) g.item, g.intent, g.model, g.score, g.source, g.cost_usd
    from grades g where g.at > now() - %(since_s)s * interval '1 second' order by g.item, g.model, {BELIEVED}
), graded as (
    select b.intent, b.model, count(*) as labels, sum(b.score) as score, sum(b.score * b.score) as squares,
           count(f.score) as pairs, coalesce(sum(f.score), 0) as flagship,
           coalesce(sum(f.score * f.score), 0) as flagship_squares, coalesce(sum(b.score - f.score), 0) as difference,
           coalesce(sum((b.score - f.score) ^ 2), 0) as difference_squares,
           coalesce(sum((b.score - f.score) * f.score), 0) as product,
           count(b.cost_usd) filter (where b.source = 'import') as imported_jobs,
           sum(b.cost_usd) filter (where b.source = 'import') as imported_usd
    from best b left join best f on f.item = b.item and f.model = %(flagship)s and f.intent = b.intent
    group by b.intent, b.model
), called as (
    select j.intent, a.model, count(distinct j.id) as jobs, sum(a.cost_usd) as usd,
           count(*) filter (where a.state in ('weak', 'succeeded')) as checked,
           count(*) filter (where a.state = 'weak') as weak
    from attempts a join jobs j on j.id = a.job_id
    where a.started_at > now() - %(since_s)s * interval '1 second' and a.state not in ('started', 'released')
      and a.service <> 'reuse' and a.cost_usd is not null and j.intent in (select intent from graded)
      and not exists (select from checks c where c.job_id = j.id and c.kind = 'judge')
    group by j.intent, a.model
)
select g.intent, g.model, g.labels, g.score, g.squares, g.pairs, g.flagship, g.flagship_squares, g.difference,
       g.difference_squares, g.product, coalesce(c.jobs, 0) + g.imported_jobs as jobs,
       case when c.usd is not null or g.imported_usd is not null
            then coalesce(c.usd, 0) + coalesce(g.imported_usd, 0) end as usd,
       coalesce(c.checked, 0) as checked, coalesce(c.weak, 0) as weak
from graded g left join called c using (intent, model)
order by g.intent, g.model
"""  # noqa: S608  # our own constant, no input
"""Quality and measured cost by intent and model. Only intents with grades are looked at, so that it is free without any."""

IMPORT: Final = """
insert into grades (item, tenant, intent, model, source, score, cost_usd)
select t.item, %(tenant)s, t.intent, t.model, 'import', t.score, t.usd
from unnest(%(items)s::text[], %(intents)s::text[], %(models)s::text[], %(scores)s::float8[], %(usd)s::numeric[])
    as t(item, intent, model, score, usd)
on conflict (item, model, source) do update set
    intent = excluded.intent, score = excluded.score, cost_usd = excluded.cost_usd, at = now()
"""

TO_AUDIT: Final = """
select j.id::text as item, j.tenant, j.intent, a.model, d.detail -> 'local' as detail, r.body
from jobs j
join decisions d on d.job_id = j.id and d.outcome = 'escalate' and d.detail ? 'local'
join attempts a on a.job_id = j.id and a.number = d.attempt
join results r on r.job_id = j.id and r.attempt <> d.attempt
join attempts p on p.job_id = j.id and p.number = r.attempt and p.provider <> 'local'
where j.finished_at > now() - %(since_s)s * interval '1 second' and j.state = 'succeeded'
  and not exists (select from grades g where g.item = j.id::text and g.model = a.model and g.source = 'audit')
order by j.finished_at limit 2000
"""
"""Local answers beside the paid ones to the same jobs, not compared yet. Index jobs_finished."""

AUDIT: Final = """
insert into grades (item, job_id, tenant, intent, model, source, score, cost_usd, detail)
select t.item, t.item::uuid, t.tenant, t.intent, t.model, 'audit', t.score, 0, t.detail::jsonb
from unnest(%(items)s::text[], %(tenants)s::text[], %(intents)s::text[], %(models)s::text[], %(scores)s::float8[],
            %(details)s::text[]) as t(item, tenant, intent, model, score, detail)
on conflict (item, model, source) do nothing
"""

AUDITS: Final = """
select intent, detail from (
    select intent, detail, row_number() over (
        partition by intent, detail ->> 'prompt', detail ->> 'model' order by at desc, id desc) as place
    from grades
    where source = 'audit' and detail ?| array['logprobs', 'score'] and at > now() - %(since_s)s * interval '1 second'
) latest where place <= %(most)s
"""
"""The latest records of each gate."""
