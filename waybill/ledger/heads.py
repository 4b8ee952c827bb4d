"""Label heads in SQL: the paid answers they are fitted on, and the ones in force. What a head is: policies/labelhead.py."""

from __future__ import annotations

from typing import Final

_PAID: Final = """
from jobs j
join results r on r.job_id = j.id
join attempts a on a.job_id = j.id and a.number = r.attempt and a.provider <> 'local' and a.service <> 'reuse'
join payloads p on p.job_id = j.id
where j.state = 'succeeded' and j.intent = %(intent)s and 'labels' = any(j.needs) and not j.local_only
"""
"""Jobs with labels that a paid model answered and whose text is still here."""

STANDING: Final = """
select w.intent, coalesce(max(h.made_at), now() - %(since_s)s * interval '1 second') as made_at,
       coalesce(sum(h.labels), 0)::int as labels, coalesce(string_agg(h.version, ' ' order by h.prompt), '') as versions
from unnest(%(intents)s::text[]) as w(intent) left join heads h on h.intent = w.intent
group by w.intent
"""
"""Of each intent: what its heads were fitted on, and when last."""

COUNT: Final = f"select count(*) as labels, now() as at {_PAID} and j.finished_at > %(after)s"
"""How many labels have come in. Index jobs_finished."""

READ: Final = f"""
select item, tenant, payload, body, sampled from (
    select l.*, row_number() over (partition by l.sampled order by l.finished_at desc) as place from (
        -- The window bounds what is looked at, whatever an intent gets through in its days.
        select j.id::text as item, j.tenant, j.finished_at, p.body as payload, r.body,
               -- An open head sends on what it is unsure of, and a sample of everything: only that stands for all jobs.
               not exists (select from attempts h where h.job_id = j.id and h.model = %(head)s and h.state <> 'released')
               or exists (
                   select from decisions d join attempts h on h.job_id = d.job_id and h.number = d.attempt
                   where d.job_id = j.id and h.model = %(head)s and d.detail ? 'local') as sampled
        {_PAID}
          and j.finished_at > now() - %(since_s)s * interval '1 second'
          and not exists (
              select from grades g where g.item = j.id::text and g.model = a.model and g.source = 'user' and g.score < 1)
        order by j.finished_at desc limit %(window)s
    ) l
) latest where place <= %(most)s order by finished_at desc
"""  # noqa: S608  # our own constant, no input
"""The latest labels of both kinds. What a user called wrong is no label. Index jobs_finished."""

PUT: Final = """
insert into heads (intent, prompt, version, labels, tenants, model)
select %(intent)s, %(prompt)s, %(version)s, %(labels)s, %(tenants)s::text[], %(model)s
-- Nothing is kept of a text that was deleted while the head was fitted on it.
where not exists (
    select from unnest(%(items)s::uuid[]) as i(id) where not exists (select from payloads p where p.job_id = i.id))
on conflict (intent, prompt) do update set version = excluded.version, labels = excluded.labels, tenants = excluded.tenants,
    model = excluded.model, made_at = now()
returning version
"""

LIST: Final = "select intent, prompt, version, labels, made_at from heads order by intent, prompt"

MODELS: Final = "select version, model from heads where version = any(%(versions)s::text[])"

FORGET: Final = "delete from heads where %(tenant)s = any(tenants) returning version"
"""What was learned from a tenant's words goes with them."""
