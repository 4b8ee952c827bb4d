"""Files and batches as the providers' batch APIs have them, and webhooks with their deliveries.

Only adds tables: workers of yesterday do not read them.
"""

from __future__ import annotations

from alembic import op

revision = "0104"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table files (
        id text not null,
        tenant text not null,
        purpose text not null,
        filename text not null,
        bytes bigint default 0 not null,
        batch_id text,
        created_at timestamp with time zone default now() not null,
        is_complete boolean default false not null,
        primary key (id)
    )
    """,
    "create index files_tenant on files (tenant, created_at)",
    """
    create table file_parts (
        file_id text not null,
        number integer not null,
        body bytea not null,
        primary key (file_id, number),
        foreign key(file_id) references files (id) on delete cascade
    )
    """,
    """
    create table batches (
        id text not null,
        tenant text not null,
        key_id text,
        dialect text not null,
        endpoint text not null,
        run_id uuid not null,
        input_file_id text not null,
        headers jsonb default '{}' not null,
        metadata jsonb,
        model text,
        status text default 'validating' not null,
        errors jsonb,
        total integer default 0 not null,
        counts jsonb,
        output_file_id text,
        error_file_id text,
        created_at timestamp with time zone default now() not null,
        expires_at timestamp with time zone not null,
        in_progress_at timestamp with time zone,
        cancelling_at timestamp with time zone,
        finalizing_at timestamp with time zone,
        ended_at timestamp with time zone,
        look_at timestamp with time zone default now() not null,
        primary key (id),
        foreign key(run_id) references runs (id),
        constraint batches_dialect check (dialect in ('openai', 'anthropic')),
        constraint batches_status check (status in ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled'))
    )
    """,
    "create index batches_tenant on batches (tenant, dialect, created_at)",
    "create index batches_open on batches (look_at) where ended_at is null",
    """
    create table batch_rows (
        batch_id text not null,
        seq integer not null,
        custom_id text not null,
        error text,
        primary key (batch_id, seq),
        foreign key(batch_id) references batches (id) on delete cascade
    )
    """,
    """
    create table webhooks (
        id text not null,
        tenant text not null,
        url text not null,
        events text[] not null,
        description text not null,
        secret text not null,
        created_at timestamp with time zone default now() not null,
        seen_until timestamp with time zone default now() not null,
        disabled_at timestamp with time zone,
        disabled_why text,
        primary key (id)
    )
    """,
    "create index webhooks_tenant on webhooks (tenant)",
    """
    create table webhook_deliveries (
        id text not null,
        webhook_id text not null,
        event text not null,
        subject text not null,
        payload text not null,
        state text default 'waiting' not null,
        tries smallint default 0 not null,
        due_at timestamp with time zone default now() not null,
        created_at timestamp with time zone default now() not null,
        delivered_at timestamp with time zone,
        status smallint,
        error text,
        primary key (id),
        foreign key(webhook_id) references webhooks (id) on delete cascade,
        constraint webhook_deliveries_state check (state in ('waiting', 'delivered', 'failed'))
    )
    """,
    "create unique index webhook_deliveries_once on webhook_deliveries (webhook_id, event, subject)",
    "create index webhook_deliveries_due on webhook_deliveries (due_at) where state = 'waiting'",
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    op.execute("drop table webhook_deliveries, webhooks, batch_rows, batches, file_parts, files")
