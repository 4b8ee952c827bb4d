"""A quality that a job states for itself.

Only adds: yesterday's dispatchers give such a job the plan of its intent, as every other.
"""

from __future__ import annotations

from alembic import op

revision = "0155"
down_revision = "0150"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table jobs add column quality double precision")


def downgrade() -> None:
    op.execute("alter table jobs drop column quality")
