"""Sums that metrics and the dashboard are read from, the trace a job belongs to, providers' bills, how long text is kept.

Only adds: yesterday's programs go on. They leave `jobs.traceparent` empty, so their jobs begin traces of their own. The sums
of what is on the ledger already are made by the first look of `waybill metrics`, a day of attempts at a time.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table jobs add column traceparent text")
    op.execute("""
    create table attempt_tallies (
        bucket timestamp with time zone not null,
        intent text not null,
        provider text not null,
        model text not null,
        service text not null,
        state text not null,
        source text not null,
        calls bigint not null,
        usd numeric(20, 12) not null,
        flagship_usd numeric(20, 12) not null,
        input_tokens bigint not null,
        output_tokens bigint not null,
        cache_read_tokens bigint not null,
        cache_write_tokens bigint not null,
        primary key (bucket, intent, provider, model, service, state, source)
    )
    """)
    op.execute("""
    create table job_tallies (
        bucket timestamp with time zone not null,
        intent text not null,
        priority text not null,
        state text not null,
        code text not null,
        slot smallint not null,
        jobs bigint not null,
        seconds double precision not null,
        primary key (bucket, intent, priority, state, code, slot)
    )
    """)
    op.execute("""
    create table tally_marks (
        kind text not null,
        upto timestamp with time zone not null,
        primary key (kind),
        constraint tally_marks_kind check (kind in ('attempts', 'jobs'))
    )
    """)
    op.execute("insert into tally_marks (kind, upto) values ('attempts', '1970-01-01Z'), ('jobs', '1970-01-01Z')")
    op.execute("""
    create table tally_late (
        job_id uuid not null,
        number smallint not null,
        primary key (job_id, number),
        foreign key (job_id, number) references attempts (job_id, number) on delete cascade
    )
    """)
    op.execute("""
    create table provider_bills (
        provider text not null,
        day date not null,
        usd numeric(20, 12) not null,
        noted_at timestamp with time zone default now() not null,
        primary key (provider, day),
        constraint provider_bills_usd check (usd >= 0 and usd <> 'NaN')
    )
    """)
    op.execute("""
    create table retention (
        tenant text not null,
        days integer not null,
        primary key (tenant),
        constraint retention_days check (days between 0 and 36500)
    )
    """)


def downgrade() -> None:
    op.execute("drop table retention, provider_bills, tally_late, tally_marks, job_tallies, attempt_tallies")
    op.execute("alter table jobs drop column traceparent")
