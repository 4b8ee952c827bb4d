"""Standing checks in SQL: which finished jobs are drawn, what came of their checks, and the budget that they keep.

Every statement is harmless when carried out twice, and so are all of them together by two dispatchers: checks are jobs with
idempotency keys, and a job that has a check is not drawn again.
"""

from __future__ import annotations

from typing import Final

_TOKENS: Final = """coalesce(a.input_tokens, 0) + coalesce(a.cache_read_tokens, 0) + coalesce(a.cache_write_tokens, 0)
           + coalesce(a.cache_write_1h_tokens, 0) as input_tokens, coalesce(a.output_tokens, 0) as output_tokens"""
# The first 32 bits of a hash of the use and the job's id: anybody can work out again whether a job is drawn.
_DRAW: Final = """('x' || left(encode(sha256(convert_to(%(use)s || ' ' || j.id, 'UTF8')), 'hex'), 8))::bit(32)::bigint
      < %(share)s * 4294967296"""
_CASCADE: Final = "(j.route -> 0 ->> 'cascade')::bigint"

_DRAWN: Final = f"""
select j.id::text, j.tenant, j.intent, {_CASCADE} as cascade, p.body as payload, {_TOKENS}
from jobs j
join results r on r.job_id = j.id
join attempts a on a.job_id = j.id and a.number = r.attempt
join payloads p on p.job_id = j.id
where j.finished_at > now() - %(since_s)s * interval '1 second' and j.state = 'succeeded' and not j.local_only
  and a.model <> %(flagship)s and a.service <> 'reuse'
  and {_DRAW}
  and not exists (select from checks c where c.about = j.id or c.job_id = j.id)
"""  # noqa: S608  # our own constants, no input

KEPT: Final = f"""{_DRAWN}
  and {_CASCADE} = any(%(cascades)s::bigint[]) and a.provider <> 'local'
order by j.finished_at limit %(limit)s
"""
"""Answers that a cascade kept and that are drawn. Index jobs_finished."""

FREE: Final = f"""{_DRAWN}
  and {_CASCADE} is null and not coalesce(j.needs && array['json_schema', 'labels'], false)
order by j.finished_at limit %(limit)s
"""
"""Free texts that are drawn; those of cascades are audited. Index jobs_finished."""

MARK: Final = """
insert into checks (job_id, about, kind, share, cascade, reckoned_usd)
select t.id, t.about, %(kind)s, t.share, t.cascade, t.usd
from unnest(%(ids)s::uuid[], %(abouts)s::uuid[], %(shares)s::float8[], %(cascades)s::bigint[], %(usd)s::numeric[])
    as t(id, about, share, cascade, usd)
on conflict (job_id) do nothing
"""

ENDED: Final = """
select c.job_id::text as check_id, c.about::text, c.kind, c.share, c.cascade, c.reckoned_usd, s.model as check_model, sr.body as check_body,
       j.intent, j.tenant, a.model, r.body, p.body as payload, sa.usd as check_usd, ja.usd
from checks c
join jobs s on s.id = c.job_id and s.finished_at is not null
join jobs j on j.id = c.about
left join results sr on sr.job_id = s.id
left join results r on r.job_id = j.id
left join attempts a on a.job_id = j.id and a.number = r.attempt
left join payloads p on p.job_id = j.id
cross join lateral (
    -- A judge's verdict is about the answer that the check before it brought.
    select sum(cost_usd) as usd from attempts where job_id = case when c.kind = 'shadow' then s.id else (
        select k.job_id from checks k where k.about = c.about and k.kind = 'shadow' and k.share is not null) end
) sa
cross join lateral (select sum(cost_usd) as usd from attempts where job_id = j.id and model = a.model) ja
where c.share is not null and c.ended_at is null
order by c.job_id limit %(limit)s
"""
"""Standing checks whose job has ended and that have not come to anything. Without an answer, or once a text was deleted, bodies are
null. Index checks_open."""

END: Final = """
update checks c set ended_at = now(), score = t.score, flagship = t.flagship
from unnest(%(ids)s::uuid[], %(scores)s::float8[], %(flagships)s::float8[]) as t(id, score, flagship)
where c.job_id = t.id and c.ended_at is null
"""

AUDITS: Final = """
select a.cascade, a.score, a.flagship
from unnest(%(cascades)s::bigint[]) as w(id) cross join lateral (
    select cascade, score, flagship from checks where cascade = w.id and score is not null order by job_id desc limit %(most)s
) a
"""
"""The latest audits of each cascade, the latest first."""

SHARE: Final = f"""
with ended as (
    select j.id from jobs j
    where j.finished_at > now() - %(since_s)s * interval '1 second' and j.state = 'succeeded' and {_CASCADE} = %(cascade)s
    order by j.finished_at desc limit %(most)s
)
select count(*) filter (where a.model <> %(flagship)s) as kept, count(*) as jobs
from ended e join results r on r.job_id = e.id join attempts a on a.job_id = e.id and a.number = r.attempt
where a.provider <> 'local' and a.service <> 'reuse'
"""  # noqa: S608
"""Of how many of a cascade's latest jobs the cheap answer was kept. Index jobs_finished."""

OF_LATE: Final = {"since_s": 7 * 86_400.0, "most": 2000}
"""The jobs whose kept share is counted."""

LEFT: Final = """
with budget as (
    insert into budgets as b (scope, subject, period, cap_usd, at_cap, alert_shares, resets_at)
    values ('key', %(key)s, 'day', %(cap_usd)s, 'stop', '{}', date_trunc('day', now(), 'UTC') + interval '1 day')
    on conflict (scope, subject, period) do update set cap_usd = excluded.cap_usd
    returning b.id, b.cap_usd, case when b.resets_at <= now() then 0 else b.spent_usd end as spent_usd
)
select b.cap_usd - b.spent_usd
       - coalesce((select sum(spent_usd) from charges where budget_id = b.id), 0)
       - coalesce((select sum(c.reckoned_usd) from checks c join jobs j on j.id = c.job_id
                   where c.share is not null and c.ended_at is null and j.key_id = %(key)s), 0) as usd
from budget b
"""
"""What a kind of standing checks may still spend today, with those under way at what they were reckoned at. The budget itself is
kept where any other is (budgets.RESERVE): this only keeps checks from being handed over that it would refuse."""
