"""Label heads: what answers an intent's labels without any language model, fitted on what paid models answered.

Only adds: yesterday's dispatchers and workers know no head and ask none.
"""

from __future__ import annotations

from alembic import op

revision = "0153"
down_revision = "0154"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    create table heads (
        intent text not null,
        prompt text not null,
        version text not null,
        labels integer not null,
        tenants text[] not null,
        model bytea not null,
        made_at timestamp with time zone default now() not null,
        primary key (intent, prompt)
    )
    """)


def downgrade() -> None:
    op.execute("drop table heads")
