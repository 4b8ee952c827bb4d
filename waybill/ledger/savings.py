"""What was spent on the jobs of a period and on what, and how good the answers were that came of it, in SQL.

The jobs are those submitted within the period; all their attempts count, whatever became of them. Relies on
`attempts_begun`: an attempt never begins before its job was submitted.
"""

from __future__ import annotations

from typing import Final

_CHOSEN = """
from jobs j join attempts a on a.job_id = j.id left join checks c on c.job_id = j.id
where a.started_at > now() - %(since_s)s * interval '1 second'
  and j.submitted_at > now() - %(since_s)s * interval '1 second'
  and (%(tenant)s::text is null or j.tenant = %(tenant)s)
  and (%(run)s::uuid is null or j.run_id = %(run)s::uuid)
  and a.state not in ('started', 'released')
"""

SPENT: Final = f"""
select coalesce(s.intent, j.intent) as intent, a.provider, a.model, a.service, a.state, c.kind as check_kind,
       count(*) as calls,
       coalesce(sum(a.cost_usd), 0) as usd,
       coalesce(sum(a.cost_usd) filter (where a.cost_source = 'estimated'), 0) as estimated_usd,
       count(*) filter (where a.cost_source = 'unpriced') as unpriced,
       coalesce(sum(a.cpu_s), 0) as cpu_s,
       coalesce(sum(a.flagship_usd), 0) as flagship_usd,
       coalesce(sum(a.input_tokens), 0)::bigint as input_tokens, coalesce(sum(a.output_tokens), 0)::bigint as output_tokens,
       coalesce(sum(a.cache_read_tokens), 0)::bigint as cache_read_tokens,
       coalesce(sum(a.cache_write_tokens), 0)::bigint as cache_write_tokens,
       coalesce(sum(a.cache_write_1h_tokens), 0)::bigint as cache_write_1h_tokens,
       coalesce(sum(a.thinking_tokens), 0)::bigint as thinking_tokens
{_CHOSEN.replace("where", "left join jobs s on s.id = c.about where", 1)}
group by coalesce(s.intent, j.intent), a.provider, a.model, a.service, a.state, c.kind
order by 1, 3, 4, 5, 6
"""  # our own constant, no input
"""Calls, money and tokens by intent, lane, how the call ended and whether its job was a check on another."""

SERVED: Final = f"""
with answered as (
    select j.id, j.intent, a.model {_CHOSEN} and a.state = 'succeeded' and c.job_id is null
), said as (
    select g.item, g.model, g.score, array_position(array['user', 'import', 'judge', 'shadow', 'audit'], g.source) as place
    from grades g where g.item in (select id::text from answered)
    union all
    -- Of an audited answer: its own score, and the flagship's.
    select c.about::text, v.model, v.score, 9
    from checks c join answered k on k.id = c.about
    cross join lateral (values (k.model, c.score), (%(flagship)s, c.flagship)) as v(model, score)
    where c.score is not null
), best as (
    select distinct on (item, model) item, model, score from said order by item, model, place
)
select w.intent, count(*) as jobs, count(b.score) as labels, coalesce(sum(b.score), 0) as score,
       coalesce(sum(b.score * b.score), 0) as squares, count(f.score) filter (where b.score is not null) as pairs,
       coalesce(sum(f.score) filter (where b.score is not null), 0) as flagship,
       coalesce(sum(f.score * f.score) filter (where b.score is not null), 0) as flagship_squares,
       coalesce(sum(b.score - f.score), 0) as difference,
       coalesce(sum((b.score - f.score) ^ 2), 0) as difference_squares,
       coalesce(sum((b.score - f.score) * f.score), 0) as product
from answered w
left join best b on b.item = w.id::text and b.model = w.model
left join best f on f.item = w.id::text and f.model = %(flagship)s
group by w.intent order by w.intent
"""  # noqa: S608
"""Grades of the answers that were served, beside the flagship's on the same jobs, by intent."""
