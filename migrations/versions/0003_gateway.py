"""Where the answer of a gateway's job is waited for.

Only adds a column without a default: no rewrite, and yesterday's workers go on without it (a gateway that gets no pieces
finds the answer in the ledger).
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0104"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table jobs add column reply_to text")


def downgrade() -> None:
    op.execute("alter table jobs drop column reply_to")
