"""What people stop by hand, tenants' weights, and the indexes that taking turns and `waybill status` rely on.

Only adds: yesterday's workers and dispatchers go on, and take no notice of holds until they are replaced. The indexes are
built inside the migration and hold up submissions while they are (about a second per million jobs).
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    create table holds (
        kind text not null,
        name text not null,
        reason text not null,
        since timestamp with time zone default now() not null,
        primary key (kind, name),
        constraint holds_kind check (kind in ('provider', 'intent'))
    )
    """)
    op.execute("""
    create table tenants (
        name text not null,
        weight smallint not null,
        primary key (name),
        constraint tenants_weight check (weight between 1 and 100)
    )
    """)
    # A line = the queued jobs that a dispatcher treats alike; waybill/ledger/turns.py jumps from line to line in it.
    op.execute("""
    create index jobs_turns on jobs (
        priority, tenant,
        (coalesce(run_id::text, '') || ' ' || intent || ' ' || local_only::text || ' ' || coalesce(model, '')), id
    ) where state = 'queued'
    """)
    # `started_at` never changes, so this index does not make settling an attempt dearer.
    op.execute("create index attempts_begun on attempts (started_at)")


def downgrade() -> None:
    op.execute("drop index attempts_begun")
    op.execute("drop index jobs_turns")
    op.execute("drop table tenants, holds")
