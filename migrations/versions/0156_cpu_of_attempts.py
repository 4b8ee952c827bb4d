"""CPU of attempts on our own models: what costs no money costs this.

Only adds; yesterday's workers leave it empty.
"""

from __future__ import annotations

from alembic import op

revision = "0156"
down_revision = "0153"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table attempts add column cpu_s double precision")


def downgrade() -> None:
    op.execute("alter table attempts drop column cpu_s")
