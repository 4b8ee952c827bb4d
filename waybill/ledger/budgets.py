"""Budgets in SQL: reserve, book, alert, and what people do with them.

A reservation is a row: the attempt that has not ended (`attempts.budgets`, `attempts.reserved_usd`). RESERVE checks and
reserves for many attempts in one statement and holds the budget's row for that statement only. An attempt that ends, in
whatever way, leaves a row in `charges` (a trigger sees to it); FOLD adds those up. So ending a call takes no lock that
another call waits for, and a reservation is at worst given back a moment too late, never too early. What a call cost above
its reservation counts from its end on, added up or not.
"""

from __future__ import annotations

from typing import Final

_SUBJECTS = """lateral (values ('tenant', j.tenant), ('key', j.key_id), ('run', j.run_id::text)) as s(scope, subject)"""
# A period that is over: what was spent in it no longer counts. Calls under way count in the period in which they end.
_IS_OVER = "coalesce(b.resets_at <= now(), false)"
_NEXT = "date_trunc(b.period, now(), 'UTC') + ('1 ' || b.period)::interval"

RESERVE: Final = f"""
with input as (
    select * from unnest(%(ids)s::uuid[], %(numbers)s::smallint[], %(amounts)s::numeric[])
        with ordinality as t(id, number, usd, place)
), touched as (
    select i.id, i.number, i.usd, i.place, b.id as budget
    from input i join jobs j on j.id = i.id cross join {_SUBJECTS}
    join budgets b on b.scope = s.scope and b.subject = s.subject
), held as (
    -- Asked again after a lost connection: what the first try has reserved is reserved.
    select a.job_id as id from input i join attempts a on a.job_id = i.id and a.number = i.number
    where a.state = 'started' and a.budgets is not null
), locked as materialized (
    select b.id, b.scope, b.period, b.cap_usd, b.at_cap, b.reserved_usd, b.resets_at,
           case when {_IS_OVER} then 0 else b.spent_usd end as spent_usd
    from budgets b where b.id in (select budget from touched) order by b.id for update
), unfolded as materialized (
    -- What ended calls cost above their reservation and FOLD has not added up; control may be away. Never what they cost
    -- below it: a charge that is folded while this statement waits for its locks is seen twice.
    select c.budget_id as id, sum(greatest(0, c.spent_usd - c.released_usd)) as usd
    from charges c where c.budget_id in (select budget from touched) group by c.budget_id
), counted as (
    select l.*, l.reserved_usd + coalesce(u.usd, 0) as taken_usd from locked l left join unfolded u on u.id = l.id
), added as (
    select t.id, t.number, t.usd, t.budget, l.scope, l.period, l.cap_usd, l.at_cap, l.spent_usd, l.taken_usd, l.resets_at,
           l.cap_usd - l.spent_usd - l.taken_usd - sum(t.usd) over (partition by t.budget order by t.place) as rest
    from touched t join counted l on l.id = t.budget where t.id not in (select id from held)
), verdicts as (
    select id, number, usd, bool_and(rest >= 0) as fits, min(rest) + usd as left_usd, array_agg(budget order by budget) as budgets
    from added group by id, number, usd
), granted as (
    update attempts a set budgets = v.budgets, reserved_usd = v.usd from verdicts v
    where v.fits and a.job_id = v.id and a.number = v.number and a.state = 'started'
    returning a.job_id as id
), booked as (
    update budgets b set reserved_usd = b.reserved_usd + g.usd,
        spent_usd = case when {_IS_OVER} then 0 else b.spent_usd end,
        alerted = case when {_IS_OVER} then 0 else b.alerted end,
        started_at = case when {_IS_OVER} then date_trunc(b.period, now(), 'UTC') else b.started_at end,
        resets_at = case when {_IS_OVER} then {_NEXT} else b.resets_at end
    from (select a.budget, sum(a.usd) as usd from added a join granted using (id) group by a.budget) g
    where b.id = g.budget
)
select id::text, true as granted, null::numeric as left_usd, null::text as scope, null::text as period,
       null::numeric as cap_usd, null::numeric as spent_usd, null::numeric as reserved_usd, null::text as at_cap,
       null::float8 as resets_in_s
from held
union all
select v.id::text, true, v.left_usd, null, null, null, null, null, null, null from verdicts v join granted using (id)
union all
select a.id::text, false, null, a.scope, a.period, a.cap_usd, a.spent_usd, a.taken_usd, a.at_cap,
       extract(epoch from a.resets_at - now())::float8
from added a join verdicts v using (id) where not v.fits and a.rest < 0
"""  # noqa: S608  # our own constants, no input
"""Rows: one for each attempt that got its amount in all its budgets, and one for each budget that refused an attempt.

An attempt whose job has no budget gets no row. Indexes budgets_subject, charges_budget and the primary keys.
"""

FOLD: Final = f"""
with taken as materialized (
    delete from charges where id in (select id from charges order by id limit 5000 for update skip locked)
    returning budget_id, released_usd, spent_usd
), sums as (
    select budget_id, sum(released_usd) as released, sum(spent_usd) as spent from taken group by budget_id
), locked as materialized (
    select b.id from budgets b where b.id in (select budget_id from sums) order by b.id for update
)
update budgets b set reserved_usd = greatest(0, b.reserved_usd - s.released),
    spent_usd = s.spent + case when {_IS_OVER} then 0 else b.spent_usd end,
    alerted = case when {_IS_OVER} then 0 else b.alerted end,
    started_at = case when {_IS_OVER} then date_trunc(b.period, now(), 'UTC') else b.started_at end,
    resets_at = case when {_IS_OVER} then {_NEXT} else b.resets_at end
from sums s join locked l on l.id = s.budget_id
where b.id = l.id
returning b.id
"""  # noqa: S608
"""Add up what ended. Any number of processes may do it; each charge is taken once."""

ALERT: Final = """
with crossed as (
    select b.id, max(share) as share from budgets b cross join unnest(b.alert_shares) as share
    where b.cap_usd > 0 and b.spent_usd >= b.cap_usd * share / 100 and share > b.alerted group by b.id
), marked as (
    update budgets b set alerted = c.share from crossed c where b.id = c.id and b.alerted < c.share
    returning b.id, b.alerted, b.spent_usd, b.cap_usd
)
insert into budget_alerts (budget_id, share, spent_usd, cap_usd) select id, alerted, spent_usd, cap_usd from marked
returning budget_id, share
"""
"""Once for each share and period; a jump over several shares is one alert, of the highest."""

LET_ASK: Final = """
update jobs j set not_before = now() + random() * interval '2 seconds'
from budgets b
where b.id = %(id)s and j.state = 'parked' and j.error_code = 'budget_exhausted' and j.not_before > now() + interval '2 seconds'
  and case b.scope when 'tenant' then j.tenant = b.subject when 'key' then j.key_id = b.subject
                   else j.run_id::text = b.subject end
returning j.id::text
"""
"""A cap was raised or lifted: those who wait for it ask again. Index jobs_parked."""

SPENT_UP: Final = """
select b.scope, b.period, b.cap_usd, b.spent_usd from budgets b
where b.at_cap = 'stop' and b.spent_usd >= b.cap_usd and not coalesce(b.resets_at <= now(), false)
  and (b.scope, b.subject) in (('tenant', %(tenant)s), ('key', %(key_id)s), ('run', %(run_id)s))
limit 1
"""
"""A budget that would refuse any paid call now: asked before a job is accepted, to say so at once. A hint; RESERVE decides."""

# --- people -----------------------------------------------------------------------------------------------------------

SET: Final = """
with subject as (
    select %(scope)s::text as scope, %(subject)s::text as subject, %(period)s::text as period,
           case %(period)s when 'total' then '-infinity'::timestamptz
                else date_trunc(nullif(%(period)s, 'total'), now(), 'UTC') end as since
), before as (
    -- The truth at the start: what the ledger says was spent in this period.
    select coalesce(sum(coalesce(a.cost_usd, a.estimate_usd)), 0) as usd
    from subject s join jobs j on (s.scope = 'tenant' and j.tenant = s.subject)
        or (s.scope = 'key' and j.key_id = s.subject) or (s.scope = 'run' and j.run_id = case s.scope when 'run' then s.subject::uuid end)
    join attempts a on a.job_id = j.id
    where a.ended_at is not null and a.started_at >= s.since
)
insert into budgets as b (scope, subject, period, cap_usd, at_cap, alert_shares, spent_usd, resets_at)
select s.scope, s.subject, s.period, %(cap_usd)s, %(at_cap)s, %(alert_shares)s, before.usd,
       case when s.period <> 'total' then s.since + ('1 ' || s.period)::interval end
from subject s, before
on conflict (scope, subject, period) do update
    set cap_usd = excluded.cap_usd, at_cap = excluded.at_cap, alert_shares = excluded.alert_shares,
        alerted = case when excluded.cap_usd > b.cap_usd then 0 else b.alerted end
returning id
"""
"""Set or change a budget. Calls that are under way when it is first set are not in it."""

LIST: Final = """
select b.id, b.scope, b.subject, b.period, b.cap_usd,
       case when coalesce(b.resets_at <= now(), false) then 0 else b.spent_usd end + coalesce(c.spent, 0) as spent_usd,
       greatest(0, b.reserved_usd - coalesce(c.released, 0)) as reserved_usd, b.at_cap, b.alert_shares, b.resets_at
from budgets b
left join (select budget_id, sum(spent_usd) as spent, sum(released_usd) as released from charges group by 1) c on c.budget_id = b.id
where (%(scope)s::text is null or b.scope = %(scope)s) and (%(subjects)s::text[] is null or b.subject = any(%(subjects)s))
order by b.scope, b.subject, b.period
"""

REMOVE: Final = """
delete from budgets where scope = %(scope)s and subject = %(subject)s and (%(period)s::text is null or period = %(period)s)
returning id
"""
