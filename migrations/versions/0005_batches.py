"""Provider batches with their rows, and when a job is due: what the batch lane and the choice of lanes need.

Only adds: yesterday's workers go on. A dispatcher of yesterday sends nothing to the batch lane; one of today must not
run before `waybill control` of today does, which takes jobs off that lane in time.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table jobs add column due_at timestamp with time zone")
    op.execute("""
    create index jobs_batched on jobs (due_at) where provider = 'batch' and state in ('routed', 'running')
    """)
    op.execute("""
    create table provider_batches (
        id uuid not null,
        provider text not null,
        part text not null,
        account text,
        state text not null,
        rows integer not null,
        payload_bytes bigint not null,
        provider_id text,
        not_ours text[] default '{}' not null,
        tries smallint default 0 not null,
        gathered_at timestamp with time zone default now() not null,
        sent_at timestamp with time zone,
        cancel_at timestamp with time zone,
        ended_at timestamp with time zone,
        look_at timestamp with time zone default now() not null,
        holder text,
        held_until timestamp with time zone,
        error text,
        primary key (id),
        constraint provider_batches_state check (state in ('gathered', 'sending', 'sent', 'ended')),
        constraint provider_batches_sent check (state <> 'sent' or provider_id is not null),
        constraint provider_batches_ended check ((state = 'ended') = (ended_at is not null))
    )
    """)
    op.execute("create index provider_batches_open on provider_batches (look_at) where state <> 'ended'")
    # While it is not known whether a batch was created, no other is sent from the account: so there is never more than
    # one that it can be, when the provider's list is searched for it.
    op.execute(
        "create unique index provider_batches_sending on provider_batches (provider, account) where state = 'sending'"
    )
    op.execute(
        "create unique index provider_batches_provider_id on provider_batches (provider, provider_id) where provider_id is not null"
    )
    op.execute("""
    create table provider_batch_rows (
        job_id uuid not null,
        number smallint not null,
        batch_id uuid not null,
        token bigint not null,
        state text default 'open' not null,
        ended_at timestamp with time zone,
        primary key (job_id, batch_id),
        foreign key (job_id) references jobs (id) on delete cascade,
        foreign key (batch_id) references provider_batches (id),
        constraint batch_rows_state
            check (state in ('open', 'succeeded', 'errored', 'expired', 'cancelled', 'missing', 'unsent')),
        constraint batch_rows_ended check ((state = 'open') = (ended_at is null))
    )
    """)
    op.execute("create index batch_rows_batch on provider_batch_rows (batch_id)")


def downgrade() -> None:
    op.execute("drop table provider_batch_rows, provider_batches")
    op.execute("drop index jobs_batched")
    op.execute("alter table jobs drop column due_at")
