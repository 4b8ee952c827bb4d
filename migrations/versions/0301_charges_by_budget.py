"""An index for what RESERVE asks of charges that are not added up yet. Nothing else changes."""

from __future__ import annotations

from alembic import op

revision = "0301"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("create index charges_budget on charges (budget_id)")


def downgrade() -> None:
    op.execute("drop index charges_budget")
