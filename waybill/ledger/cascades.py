"""Learned cascades in SQL: the graded answers they are fitted on, and the ones in force. Deciding with them: policies/cascading.py."""

from __future__ import annotations

from typing import Final

from waybill.ledger.grades import BELIEVED

ANSWERED: Final = f"""
with jobs_of as (
    select j.id from jobs j
    where j.finished_at > now() - %(since_s)s * interval '1 second' and j.state = 'succeeded' and j.intent = %(intent)s
      and (%(tenant)s::text is null or j.tenant = %(tenant)s) and not j.local_only
      and not exists (select from checks c where c.job_id = j.id)
    order by j.finished_at desc limit %(most)s
), given as (
    select o.id as about, o.id as answered from jobs_of o
    union all
    select c.about, c.job_id from checks c join jobs_of o on o.id = c.about and c.kind = 'shadow'
), best as (
    -- One score per item and model: the source most to be believed.
    select distinct on (g.item, g.model) g.item, g.model, g.score
    from grades g join jobs_of o on g.item = o.id::text
    where g.at > now() - %(since_s)s * interval '1 second' order by g.item, g.model, {BELIEVED}
)
select distinct on (v.about, a.model) v.about::text as item, q.tenant, p.body as payload, a.model, b.score, t.usd, r.body
from given v
join jobs q on q.id = v.about
join results r on r.job_id = v.answered
join attempts a on a.job_id = v.answered and a.number = r.attempt and a.service <> 'reuse'
join payloads p on p.job_id = v.about
join best b on b.item = v.about::text and b.model = a.model
cross join lateral (
    select sum(cost_usd) as usd from attempts where job_id = v.answered and model = a.model and state <> 'released'
) t
where t.usd is not null
order by v.about, a.model, v.answered
"""  # noqa: S608  # our own constant, no input
"""The latest jobs of an intent with every graded answer to them, their own and those of shadow runs. Index jobs_finished."""

PUT: Final = """
with ended as (
    update cascades set ended_at = now() where intent = %(intent)s and ended_at is null returning id
), before as (select count(*) as ended from ended)
insert into cascades (intent, chain, target, labels, quality, saving, tenants, source, model)
select %(intent)s, %(chain)s::text[], %(target)s, %(labels)s, %(quality)s, %(saving)s, %(tenants)s::text[], %(source)s, %(model)s
from before
returning id
"""

END: Final = "update cascades set ended_at = now() where intent = %(intent)s and ended_at is null returning id"

LIST: Final = """
select id, intent, chain, target, labels, quality, saving, source, made_at, drift from cascades where ended_at is null order by intent
"""

IN_FORCE: Final = "select id, intent, target, drift is not null as has_drifted from cascades where ended_at is null"

DRIFT: Final = """
update cascades set drift = %(reason)s where id = %(id)s and drift is null and ended_at is null returning id
"""
"""Take one out of force. Whoever gets a row tells; all later ones get none."""

READ: Final = "select id, intent, target, model from cascades where id = any(%(ids)s::bigint[])"
"""Also those that have ended: jobs under way go on with the one they began with."""

FORGET: Final = "delete from cascades where %(tenant)s = any(tenants) returning id"
"""What was learned from a tenant's words goes with them. Jobs that began with it are sent on to their strongest model."""
