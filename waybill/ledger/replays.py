"""Jobs as they were decided, and jobs fit to be asked again of another model, in SQL."""

from __future__ import annotations

from typing import Final

DECIDED: Final = """
with chosen as (
    select j.id, j.tenant, j.intent, j.state, j.payload_bytes, j.deadline_at, j.finished_at
    from jobs j
    where j.finished_at > now() - %(since_s)s * interval '1 second' and j.route is not null
      and (%(tenant)s::text is null or j.tenant = %(tenant)s)
      and not exists (select from checks c where c.job_id = j.id)
    order by j.finished_at desc limit %(most)s
)
select c.id::text, c.tenant, c.intent, c.state, c.payload_bytes, d.detail, t.usd, t.unpriced,
       case when c.deadline_at is not null then (c.finished_at > c.deadline_at or c.state <> 'succeeded')::int end as late,
       g.score, t.input_tokens, t.output_tokens
from chosen c
join lateral (
    select detail from decisions where job_id = c.id and outcome = 'route' order by id desc limit 1
) d on true
join lateral (
    select coalesce(sum(cost_usd), 0) as usd, count(*) filter (where cost_source = 'unpriced') as unpriced,
           max(coalesce(input_tokens, 0) + coalesce(cache_read_tokens, 0) + coalesce(cache_write_tokens, 0)
               + coalesce(cache_write_1h_tokens, 0)) as input_tokens, max(output_tokens) as output_tokens
    from attempts where job_id = c.id and service <> 'reuse'
) t on true
left join lateral (
    select g.score from results r join attempts a on a.job_id = r.job_id and a.number = r.attempt
    join grades g on g.item = c.id::text and g.model = a.model
    where r.job_id = c.id
    order by array_position(array['user', 'import', 'judge', 'shadow', 'audit'], g.source) limit 1
) g on true
"""
"""Index jobs_finished. What was routed to, what it cost in all, whether it was late, and the grade of its answer."""

SHADOWABLE: Final = """
select j.id::text, j.intent, j.tenant, a.model, r.body, p.body as payload,
       coalesce(a.input_tokens, 0) + coalesce(a.cache_read_tokens, 0) + coalesce(a.cache_write_tokens, 0)
           + coalesce(a.cache_write_1h_tokens, 0) as input_tokens, coalesce(a.output_tokens, 0) as output_tokens
from jobs j
join results r on r.job_id = j.id
join attempts a on a.job_id = j.id and a.number = r.attempt
join payloads p on p.job_id = j.id
where j.finished_at > now() - %(since_s)s * interval '1 second' and j.state = 'succeeded'
  and (%(intent)s::text is null or j.intent = %(intent)s)
  and (%(tenant)s::text is null or j.tenant = %(tenant)s)
  and a.model <> %(model)s and a.service <> 'reuse'
  -- What must stay on local models is never shown to another one.
  and not j.local_only
  and (%(model)s = %(flagship)s or a.model = %(flagship)s)
  and not exists (select from checks c where c.job_id = j.id)
  and not exists (select from checks c join jobs s on s.id = c.job_id where c.about = j.id and s.model = %(model)s)
-- Jobs that other models were shown already first: what all have answered teaches most (`waybill policy fit`).
order by exists (select from checks c where c.about = j.id and c.kind = 'shadow') desc, random() limit %(sample)s
"""

MARK: Final = """
insert into checks (job_id, about, kind)
select t.id, t.about, %(kind)s from unnest(%(ids)s::uuid[], %(abouts)s::uuid[]) as t(id, about)
on conflict (job_id) do nothing
"""

CHECKED: Final = """
select c.job_id::text as check_id, c.about::text, c.kind, s.model as check_model, sr.body as check_body,
       j.intent, j.tenant, a.model, r.body, p.body as payload, sa.usd as check_usd, ja.usd
from checks c
join jobs s on s.id = c.job_id and s.state = 'succeeded'
join results sr on sr.job_id = s.id
join jobs j on j.id = c.about
join results r on r.job_id = j.id
join attempts a on a.job_id = j.id and a.number = r.attempt
join payloads p on p.job_id = j.id
cross join lateral (select sum(cost_usd) as usd from attempts where job_id = s.id) sa
cross join lateral (select sum(cost_usd) as usd from attempts where job_id = j.id and model = a.model) ja
where c.job_id = any(%(ids)s::uuid[])
"""

GRADE: Final = """
insert into grades (item, job_id, tenant, intent, model, source, score, cost_usd)
select t.item, t.item::uuid, t.tenant, t.intent, t.model, %(source)s, t.score, t.usd
from unnest(%(items)s::text[], %(tenants)s::text[], %(intents)s::text[], %(models)s::text[], %(scores)s::float8[],
            %(usd)s::numeric[]) as t(item, tenant, intent, model, score, usd)
on conflict (item, model, source) do update set score = excluded.score, cost_usd = excluded.cost_usd, at = now()
"""
