"""Standing checks: what was drawn with which chance, about which cascade, what it was reckoned at, and what came of it.

Only adds: yesterday's processes neither draw nor end any, and keep to a cascade that has drifted until they are new.
"""

from __future__ import annotations

from alembic import op

revision = "0154"
down_revision = "0155"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    alter table checks
        add column share double precision,
        add column cascade bigint,
        add column reckoned_usd numeric(20, 12),
        add column score double precision,
        add column flagship double precision,
        add column ended_at timestamp with time zone,
        add constraint checks_share check (share > 0 and share <= 1),
        add constraint checks_scores check (score between 0 and 1 and flagship between 0 and 1)
    """)
    op.execute("create index checks_open on checks (job_id) where share is not null and ended_at is null")
    op.execute("create index checks_cascade on checks (cascade, job_id) where score is not null")
    op.execute("alter table cascades add column drift text")


def downgrade() -> None:
    op.execute("alter table cascades drop column drift")
    op.execute("drop index checks_cascade")
    op.execute("drop index checks_open")
    op.execute("""
    alter table checks
        drop constraint checks_scores, drop constraint checks_share,
        drop column ended_at, drop column flagship, drop column score, drop column reckoned_usd, drop column cascade,
        drop column share
    """)
