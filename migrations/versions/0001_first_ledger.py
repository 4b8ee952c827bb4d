"""The first ledger: runs, jobs, payloads, attempts, decisions, results.

Nothing came before it, so no worker has to survive it.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
    create table runs (
        id uuid not null,
        tenant text not null,
        name text not null,
        fingerprint text not null,
        state text default 'open' not null,
        created_at timestamp with time zone default now() not null,
        primary key (id),
        constraint runs_state check (state in ('open', 'paused', 'cancelled'))
    )
    """,
    """
    create unique index runs_fingerprint on runs (tenant, fingerprint)
    """,
    """
    create table jobs (
        id uuid not null,
        run_id uuid,
        seq integer,
        tenant text not null,
        intent text not null,
        state text default 'queued' not null,
        priority text not null,
        idempotency_key text,
        request_hash text not null,
        payload_bytes integer not null,
        max_output_tokens integer,
        model text,
        local_only boolean default false not null,
        needs text[] default '{}' not null,
        stream boolean default false not null,
        deadline_at timestamp with time zone,
        route jsonb,
        route_index smallint default '0' not null,
        provider text,
        attempt smallint default '0' not null,
        used smallint default '0' not null,
        losses smallint default '0' not null,
        lease_token bigint,
        lease_owner text,
        lease_until timestamp with time zone,
        not_before timestamp with time zone,
        cancel_requested boolean default false not null,
        error_code text,
        error text,
        submitted_at timestamp with time zone default now() not null,
        published_at timestamp with time zone default now() not null,
        finished_at timestamp with time zone,
        primary key (id),
        constraint jobs_state check (state in ('queued', 'routed', 'running', 'parked', 'succeeded', 'failed', 'cancelled', 'dead')),
        constraint jobs_priority check (priority in ('hi', 'lo')),
        constraint jobs_final_has_time check ((state in ('succeeded', 'failed', 'cancelled', 'dead')) = (finished_at is not null)),
        constraint jobs_running_has_lease check ((state = 'running') = (lease_token is not null and lease_until is not null)),
        constraint jobs_parked_has_time check (state <> 'parked' or not_before is not null),
        constraint jobs_has_route check (state in ('queued', 'failed', 'cancelled') or route is not null),
        constraint jobs_counts check (attempt >= 0 and used >= 0 and losses >= 0),
        foreign key(run_id) references runs (id)
    )
    """,
    """
    create index jobs_finished on jobs (finished_at) where finished_at is not null
    """,
    """
    create unique index jobs_idempotency on jobs (tenant, idempotency_key) where idempotency_key is not null
    """,
    """
    create index jobs_leases on jobs (lease_until) where state = 'running'
    """,
    """
    create index jobs_parked on jobs (not_before) where state = 'parked'
    """,
    """
    create unique index jobs_run_seq on jobs (run_id, seq) where run_id is not null
    """,
    """
    create index jobs_waiting on jobs (state, published_at) where state in ('queued', 'routed')
    """,
    """
    create table attempts (
        job_id uuid not null,
        number smallint not null,
        provider text not null,
        model text not null,
        service text not null,
        reason text not null,
        state text default 'started' not null,
        worker text not null,
        started_at timestamp with time zone default now() not null,
        ended_at timestamp with time zone,
        first_token_s DOUBLE PRECISION,
        served_model text,
        request_id text,
        stop text,
        input_tokens integer,
        output_tokens integer,
        cache_read_tokens integer,
        cache_write_tokens integer,
        cache_write_1h_tokens integer,
        thinking_tokens integer,
        cost_usd numeric(20, 12),
        cost_source text,
        flagship_usd numeric(20, 12),
        estimate_usd numeric(20, 12) not null,
        price_version text,
        error_code text,
        error text,
        primary key (job_id, number),
        constraint attempts_state check (state in ('started', 'succeeded', 'weak', 'throttled', 'failed', 'broken', 'unknown', 'fenced', 'cancelled', 'released')),
        constraint attempts_cost_source_known check (cost_source is null or cost_source in ('usage', 'estimated', 'nothing', 'unpriced')),
        constraint attempts_cost check (cost_usd is null or (cost_usd >= 0 and cost_usd <> 'NaN')),
        constraint attempts_ended check ((state = 'started') = (ended_at is null)),
        constraint attempts_priced check (state = 'started' or cost_source = 'unpriced' or cost_usd is not null),
        constraint attempts_tokens check (input_tokens >= 0 and output_tokens >= 0 and cache_read_tokens >= 0 and cache_write_tokens >= 0 and cache_write_1h_tokens >= 0 and thinking_tokens >= 0),
        foreign key(job_id) references jobs (id) on delete cascade
    )
    """,
    """
    create table decisions (
        id bigint generated by default as identity,
        job_id uuid not null,
        attempt smallint,
        outcome text not null,
        reason text not null,
        detail jsonb,
        policy_version text,
        at timestamp with time zone default now() not null,
        primary key (id),
        foreign key(job_id) references jobs (id) on delete cascade
    )
    """,
    """
    create index decisions_job on decisions (job_id)
    """,
    """
    create table payloads (
        job_id uuid not null,
        body text not null,
        primary key (job_id),
        foreign key(job_id) references jobs (id) on delete cascade
    )
    """,
    """
    create table results (
        job_id uuid not null,
        attempt smallint not null,
        body text not null,
        primary key (job_id),
        foreign key(job_id) references jobs (id) on delete cascade
    )
    """,
)

# The fencing tokens of leases: always growing, so that an old holder is recognised.
TOKENS = "create sequence lease_tokens"

# docs/state_machine.md as a constraint. A change of state that is no edge is a bug of ours and must not be stored.
EDGES = """
create function jobs_check_edge() returns trigger language plpgsql as $$
begin
    if (old.state, new.state) not in (
        ('dead', 'queued'),
        ('failed', 'queued'),
        ('parked', 'cancelled'),
        ('parked', 'routed'),
        ('queued', 'cancelled'),
        ('queued', 'failed'),
        ('queued', 'routed'),
        ('routed', 'cancelled'),
        ('routed', 'running'),
        ('running', 'cancelled'),
        ('running', 'dead'),
        ('running', 'failed'),
        ('running', 'parked'),
        ('running', 'routed'),
        ('running', 'succeeded')
    ) then
        raise exception 'job % cannot go from % to %', old.id, old.state, new.state
            using errcode = 'check_violation', constraint = 'jobs_edge';
    end if;
    return new;
end $$
"""

EDGES_TRIGGER = """
create trigger jobs_edge before update of state on jobs
    for each row when (old.state is distinct from new.state) execute function jobs_check_edge()
"""


def upgrade() -> None:
    for statement in (*TABLES, TOKENS, EDGES, EDGES_TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    op.execute("drop table results, decisions, attempts, payloads, jobs, runs cascade")
    op.execute("drop function jobs_check_edge()")
    op.execute("drop sequence lease_tokens")
