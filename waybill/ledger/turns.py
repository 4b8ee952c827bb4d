"""The dispatcher's view of what is queued: lines instead of one queue, so that tenants can take turns.

A *line* is the queued jobs of one class that have tenant, run, intent, pinned model and local-only in common. Index
`jobs_turns` holds them together; LINES jumps from one to the next (about 20 us each), however many jobs they have.
GLANCE finds a few jobs that somebody waits for with all that LINES, ON_THEIR_WAY and NEXT would say of them.
"""

from __future__ import annotations

from typing import Final

_LINE: Final = (
    "(coalesce(j.run_id::text, '') || ' ' || j.intent || ' ' || j.local_only::text || ' ' || coalesce(j.model, ''))"
)
MOST_LINES: Final = 1000
"""Looked at in one go; with more, the next look goes on where this one ended."""

LINES: Final = f"""
with recursive found(tenant, line) as (
    (select j.tenant, {_LINE} from jobs j
     where j.state = 'queued' and j.waits_for is null and j.priority = %(priority)s
       and (j.tenant, {_LINE}) > (%(after_tenant)s, %(after_line)s)
     order by j.tenant, {_LINE} limit 1)
    union all
    select next.tenant, next.line
    from found f cross join lateral (
        select j.tenant, {_LINE} as line from jobs j
        where j.state = 'queued' and j.waits_for is null and j.priority = %(priority)s
          and (j.tenant, {_LINE}) > (f.tenant, f.line)
        order by j.tenant, {_LINE} limit 1
    ) next
), parts as (
    select tenant, line, split_part(line, ' ', 1) as run, split_part(line, ' ', 2) as intent from found limit {MOST_LINES}
)
select s.tenant, s.line, coalesce(t.weight, 1) as weight,
       coalesce(r.state, 'open') as run_state, h.name is not null as is_paused
from parts s
left join tenants t on t.name = s.tenant
left join runs r on r.id = nullif(s.run, '')::uuid
left join holds h on h.kind = 'intent' and h.name = s.intent
order by s.tenant, s.line
"""  # noqa: S608  # our own constant, no input

_QUEUED: Final = (
    "q.state = 'queued' and q.waits_for is null and q.priority = %(priority)s and q.tenant = w.tenant and "
    + _LINE.replace("j.", "q.")
    + " = w.line"
)

_ASKED: Final = f"""j.id::text, j.tenant, j.intent, j.priority, j.model, j.local_only, j.quality, j.payload_bytes,
       j.max_output_tokens, j.needs, j.stream, j.reply_to, j.question, j.prefix, j.prefix_bytes,
       {_LINE} as line, extract(epoch from j.deadline_at - now())::float8 as slack_s,
       extract(epoch from j.due_at - now())::float8 as due_s,
       -- Only what nobody has tagged is read, to guess its intent, and what a cascade decides about.
       case when j.intent = any(%(read)s::text[]) then (select body from payloads p where p.job_id = j.id) end as payload"""  # noqa: S608
"""What routing asks of a job."""

NEXT: Final = f"""
select {_ASKED}
from unnest(%(tenants)s::text[], %(lines)s::text[], %(counts)s::int[]) as w(tenant, line, count)
cross join lateral (
    with oldest as (
        select q.prefix from jobs q where {_QUEUED} order by q.id limit 1
    ), alike as (
        select q.* from jobs q, oldest o
        where q.prefix = o.prefix and {_QUEUED} order by q.id limit w.count
    )
    select * from alike
    union all
    (select q.* from jobs q
     where {_QUEUED} and not exists (select from alike a where a.id = q.id)
     order by q.id limit w.count - (select count(*) from alike))
) j
"""  # noqa: S608
"""Of each line the oldest job with all that start like it (index jobs_prefix), then the others by age.

So jobs of one template travel together while the prompt caches know it, and nobody is passed over for ever: whoever is the
oldest leads the next group.
"""

ALIKE: Final = """
select count(*) as jobs
from (select from jobs where prefix = %(prefix)s and state in ('queued', 'routed') and waits_for is null limit 20) as found
"""
"""Jobs that begin alike and that no worker has taken (index jobs_prefix), 20 at most."""

_IS_ON_ITS_WAY: Final = """
j.state = 'routed' and (r.state is null or r.state = 'open')
  and j.intent not in (select name from holds where kind = 'intent')"""

ON_THEIR_WAY: Final = f"""
select j.provider, j.priority, count(*) as jobs
from jobs j left join runs r on r.id = j.run_id
where {_IS_ON_ITS_WAY}
group by j.provider, j.priority
"""  # noqa: S608
"""Jobs that wait for a worker's claim. Those of paused runs and intents wait for something else."""

FEW: Final = 20

GLANCE: Final = f"""
with few as materialized (
    select j.id from jobs j
    where j.state = 'queued' and j.waits_for is null and j.priority = %(priority)s limit {FEW + 1}
)
select c.total, c.under_way, {_ASKED},
       coalesce(t.weight, 1) as weight, coalesce(r.state, 'open') as run_state, h.name is not null as is_paused
from (
    select (select count(*) from few) as total,
           (select json_object_agg(provider, jobs) from (
                select j.provider, count(*) as jobs from jobs j left join runs r on r.id = j.run_id
                where {_IS_ON_ITS_WAY} and j.priority = %(priority)s and j.provider is not null
                group by j.provider) as w) as under_way
) c
left join few f on c.total <= {FEW}
left join jobs j on j.id = f.id
left join tenants t on t.name = j.tenant
left join runs r on r.id = j.run_id
left join holds h on h.kind = 'intent' and h.name = j.intent
order by j.tenant, line, j.id
"""  # noqa: S608
"""All queued jobs of a class where they are a few, by line and age, each with its line's weight and state. One row without
a job (id null) where none is queued, or more than a few (`total`). `under_way`: as ON_THEIR_WAY, of this class."""

DRAINED: Final = "select name, reason from holds where kind = 'provider'"
