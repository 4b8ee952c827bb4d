"""Answers that are shared, prompt prefixes that are kept warm, and what each of them saved.

Only adds and widens: yesterday's clients submit jobs without question and prefix, which share nothing; yesterday's
dispatchers route waiting jobs at once, which costs calls and nothing else. The index that changes is built inside the
migration and holds up submissions while it is (about a second per million jobs).
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None

TURNS = """
create index jobs_turns on jobs (
    priority, tenant,
    (coalesce(run_id::text, '') || ' ' || intent || ' ' || local_only::text || ' ' || coalesce(model, '')), id
) where {}
"""

# As in 0001, and one more.
EDGES = """
create or replace function jobs_check_edge() returns trigger language plpgsql as $$
begin
    if (old.state, new.state) not in (
        ('dead', 'queued'),
        ('failed', 'queued'),
        ('parked', 'cancelled'),
        ('parked', 'routed'),
        ('queued', 'cancelled'),
        ('queued', 'failed'),
        ('queued', 'routed'),
        ('queued', 'succeeded'),
        ('routed', 'cancelled'),
        ('routed', 'running'),
        ('running', 'cancelled'),
        ('running', 'dead'),
        ('running', 'failed'),
        ('running', 'parked'),
        ('running', 'routed'),
        ('running', 'succeeded')
    ) then
        raise exception 'job % cannot go from % to %', old.id, old.state, new.state
            using errcode = 'check_violation', constraint = 'jobs_edge';
    end if;
    return new;
end $$
"""


def upgrade() -> None:
    op.execute("""
    alter table jobs
        add column question text,
        add column prefix text,
        add column prefix_bytes integer default 0 not null,
        add column waits_for uuid,
        add column waits_until timestamp with time zone
    """)
    op.execute("""
    alter table attempts
        add column list_usd numeric(20, 12),
        add column uncached_usd numeric(20, 12),
        add column source_job uuid
    """)
    op.execute("""
    create table answers (
        key text not null,
        job_id uuid not null,
        asked_at timestamp with time zone default now() not null,
        primary key (key),
        foreign key(job_id) references jobs (id) on delete cascade
    )
    """)
    op.execute("create index answers_job on answers (job_id)")
    op.execute("create index answers_asked on answers (asked_at)")
    op.execute("drop index jobs_turns")
    op.execute(TURNS.format("state = 'queued' and waits_for is null"))
    op.execute(
        "create index jobs_waits on jobs (waits_for, waits_until) where state = 'queued' and waits_for is not null"
    )
    op.execute(
        "create index jobs_prefix on jobs (prefix, id) where state in ('queued', 'routed') and prefix is not null"
    )
    # A question that was answered before needs no call.
    op.execute(EDGES)


def downgrade() -> None:
    op.execute(EDGES.replace("        ('queued', 'succeeded'),\n", ""))
    op.execute("drop index jobs_prefix, jobs_waits, jobs_turns")
    op.execute("update jobs set waits_for = null where waits_for is not null")
    op.execute(TURNS.format("state = 'queued'"))
    op.execute("drop table answers")
    op.execute("alter table attempts drop column list_usd, drop column uncached_usd, drop column source_job")
    op.execute(
        "alter table jobs drop column question, drop column prefix, drop column prefix_bytes,"
        " drop column waits_for, drop column waits_until"
    )
