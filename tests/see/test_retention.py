"""Text goes when its time is over or its owner says so; what it cost stays. A backup brings everything back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from sqlalchemy import make_url

from producers.gateway.batchlines import load_refusal
from producers.gateway.errors import Kind
from tests.see.conftest import Bench
from waybill import Client, embedded
from waybill.cli import cli
from waybill.embedded.binaries import find_postgres
from waybill.errors import JobFailed


def tables_with(database_url: str, canary: str) -> set[str]:
    """The tables in which a text is found."""
    found = set()
    with psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql")) as connection:
        for (table,) in connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall():
            query = sql.SQL("select count(*) from {} t where t::text like %s").format(sql.Identifier(table))
            if connection.execute(query, (f"%{canary}%",)).fetchone() != (0,):
                found.add(table)
    return found


async def age(bench: Bench, job_id: str, days: int) -> str:
    """Let a job have been submitted and ended days ago, id and all; returns its new id."""
    rows = await bench.ledger.fetch(
        """
        with old as (select (lpad(to_hex((extract(epoch from now() - %(days)s * interval '1 day') * 1000)::bigint), 12, '0')
                             || right(replace(%(id)s, '-', ''), 20))::uuid as id)
        update jobs j set submitted_at = submitted_at - %(days)s * interval '1 day',
            finished_at = finished_at - %(days)s * interval '1 day', id = old.id
        from old where j.id = %(id)s::uuid returning j.id::text
        """,
        {"id": job_id, "days": days},
    )
    return str(rows[0]["id"])


@pytest.fixture
async def finished(bench: Bench) -> str:
    """A job with text in every place that text can be in."""
    await bench.ledger.fetch(
        "alter table payloads drop constraint payloads_job_id_fkey, add foreign key (job_id) references jobs on update cascade"
    )
    for table in ("results", "attempts", "decisions"):
        await bench.ledger.fetch(
            f"alter table {table} drop constraint {table}_job_id_fkey,"
            " add foreign key (job_id) references jobs on update cascade"
        )
    claimed = await bench.claimed(tenant="acme", idempotency_key="CANARY-KEY")
    await bench.settle(claimed, reason="CANARY-REASON quoted", error="CANARY-ERROR")
    return claimed[0]


async def test_text_goes_after_its_tenants_days_and_the_costs_stay(
    bench: Bench, finished: str, database_url: str
) -> None:
    old = await age(bench, finished, 40)
    young = await bench.claimed(tenant="acme")
    await bench.settle(young)
    other = await bench.claimed(tenant="other")
    await bench.settle(other)
    await bench.ledger.fetch("insert into retention (tenant, days) values ('acme', 30)")

    await bench.control.purge()

    left = await bench.ledger.fetch("select job_id::text from payloads")
    assert {row["job_id"] for row in left} == {young[0], other[0]}
    assert tables_with(database_url, "CANARY-REASON") == set()
    assert tables_with(database_url, "CANARY-ERROR") == set()
    rows = await bench.ledger.fetch("select cost_usd, input_tokens from attempts where job_id = %(id)s", {"id": old})
    assert (str(rows[0]["cost_usd"]), rows[0]["input_tokens"]) == ("0.001000000000", 100)
    assert tables_with(database_url, "CANARY-KEY") == {"jobs"}, "the same key must not run it again"
    with pytest.raises(JobFailed, match="purged"):
        bench.client.result(old, timeout_s=60)


async def test_without_a_rule_text_is_kept_and_a_star_is_for_all(bench: Bench, finished: str) -> None:
    await age(bench, finished, 400)
    await bench.control.purge()
    assert len(await bench.ledger.fetch("select from payloads")) == 1

    await bench.ledger.fetch("insert into retention (tenant, days) values ('*', 100), ('acme', 500)")
    await bench.control.purge()
    assert len(await bench.ledger.fetch("select from payloads")) == 1, "a tenant's own rule goes before"

    await bench.ledger.fetch("delete from retention where tenant = 'acme'")
    await bench.control.purge()
    assert len(await bench.ledger.fetch("select from payloads")) == 0


async def test_unfinished_jobs_keep_their_text_whatever_their_age(bench: Bench) -> None:
    await bench.claimed()
    await bench.ledger.fetch("update jobs set submitted_at = now() - interval '90 days'")
    await bench.ledger.fetch("insert into retention (tenant, days) values ('*', 0)")

    await bench.control.purge()

    assert len(await bench.ledger.fetch("select from payloads")) == 1


async def ended_batch(bench: Bench, days: int) -> None:
    """A client's batch of tenant acme that ended days ago, one of whose requests was refused, and a webhook that was told."""
    await bench.ledger.fetch(
        """
        with run as (
            insert into runs (id, tenant, name, fingerprint) values (gen_random_uuid(), 'acme', 'b', 'batch:b') returning id
        ), made as (
            insert into batches (id, tenant, dialect, endpoint, run_id, input_file_id, headers, metadata, expires_at, ended_at, status)
            select 'batch_1', 'acme', 'openai', '/v1/responses', id, 'file-1', '{"x": "CANARY-HEADER"}', '{"y": "CANARY-METADATA"}',
                   now(), now() - %(days)s * interval '1 day', 'completed' from run returning id
        ), hook as (
            insert into webhooks (id, tenant, url, events, description, secret)
            values ('wh_1', 'acme', 'https://example.com', '{}', '', 's') returning id
        ), told as (
            insert into webhook_deliveries (id, webhook_id, event, subject, payload, state, created_at)
            select 'msg_1', id, 'run.finished', 's', '{"name": "CANARY-DELIVERY"}', 'delivered',
                   now() - %(days)s * interval '1 day' from hook
        )
        insert into batch_rows (batch_id, seq, custom_id, error)
        select id, 0, 'row-0', '{"kind": "invalid", "message": "CANARY-ROW", "param": "CANARY-PARAM", "code": null}' from made
        """,
        {"days": days},
    )


async def test_what_was_said_of_batches_and_to_webhooks_goes_with_the_text(bench: Bench, database_url: str) -> None:
    await ended_batch(bench, days=40)
    await bench.ledger.fetch("insert into retention (tenant, days) values ('acme', 50)")
    await bench.control.purge()
    assert tables_with(database_url, "CANARY") == {"batches", "batch_rows"}, "deliveries are kept for a month at most"

    await bench.ledger.fetch("update retention set days = 30")
    await bench.control.purge()

    assert tables_with(database_url, "CANARY") == set()
    kept = await bench.ledger.fetch("select custom_id, error from batch_rows")
    refusal = load_refusal(kept[0]["error"])
    assert (kept[0]["custom_id"], refusal.kind, refusal.message) == ("row-0", Kind.INVALID, "(text deleted)")


async def test_without_a_rule_batches_keep_their_words(bench: Bench, database_url: str) -> None:
    await ended_batch(bench, days=400)

    await bench.control.purge()

    assert tables_with(database_url, "CANARY") == {"batches", "batch_rows"}


async def test_a_tenants_data_is_deleted_on_request(
    bench: Bench, finished: str, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.client.submit(intent="extraction", prompt="CANARY-WAITING", tenant="acme")
    await bench.settle(await bench.claimed(tenant="other"))
    monkeypatch.setenv("WAYBILL_DATABASE_URL", database_url)
    monkeypatch.setenv("WAYBILL_REDIS_URL", redis_url)

    import asyncio

    asked = await asyncio.to_thread(CliRunner().invoke, cli, ["erase", "acme"])
    assert "1 unfinished job(s) would be cancelled" in asked.output
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["erase", "acme", "--yes"])

    assert done.exit_code == 0, done.output
    assert "the text of 2 job(s) and 0 file(s) is deleted" in done.output
    for canary in ("CANARY-KEY", "CANARY-REASON", "CANARY-ERROR", "CANARY-WAITING"):
        assert tables_with(database_url, canary) == set(), canary
    assert tables_with(database_url, "CANARY-PROMPT") == {"payloads"}, "the other tenant's"
    rows = await bench.ledger.fetch("select sum(cost_usd) as usd from attempts")
    assert str(rows[0]["usd"]) == "0.002000000000"


async def test_a_backup_restored_elsewhere_is_the_same_ledger(
    bench: Bench, services: embedded.Services, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    claimed = await bench.claimed()
    await bench.settle(claimed)
    waiting = bench.client.submit(intent="extraction", prompt="waits over the restore")
    programs, url = find_postgres().postgres.parent, make_url(database_url)
    env = {**os.environ, "PGPASSWORD": str(url.password)}
    where = ["--host", str(url.host), "--port", str(url.port), "--username", str(url.username)]

    dump = tmp_path / "ledger.dump"
    subprocess.run(
        [programs / "pg_dump", *where, "--format=custom", f"--file={dump}", str(url.database)], env=env, check=True
    )
    restored = embedded.create_database(str(services.database_url), "restored")
    name = str(make_url(restored).database)
    subprocess.run([programs / "pg_restore", *where, "--exit-on-error", f"--dbname={name}", dump], env=env, check=True)

    with Client(restored, redis_url) as client:
        assert client.result(claimed[0], timeout_s=60).text == "CANARY-ANSWER"
        assert client.states([waiting])[waiting] == "queued"
        # Sequences and triggers came along: the restored ledger goes on.
        assert client.submit(intent="extraction", prompt="after the restore")
