"""The batch lane end to end: half price, any order, partial results, cancelling, hedging, refusals; one result and one charge."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tests.batchlane.stage import MODELS, Stage
from waybill.cli import cli
from waybill.ledger.engine import Ledger
from waybill.ledger.story import read_story, tell

HOUR_S, DAY_S = 3600, 86400


def test_jobs_with_a_day_cost_half_and_each_has_one_result(on: Stage) -> None:
    on.submit(60)
    on.until_sent(60)
    assert on.sandbox.bill()["requests"] == 0
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 60}
    on.check()
    assert set(on.tiers()) == {"batch"}
    lanes = {(row["provider"], row["service"]) for row in on.attempts()}
    assert lanes == {("anthropic", "batch"), ("openai", "batch")}
    result = on.client.result(on.ids[0], timeout_s=5)
    assert result.lane == "anthropic/claude-haiku-5-5/batch"
    assert result.usd is not None
    models = on.rows("select part, count(*) as n from provider_batches group by 1 order by 1")
    assert [row["part"] for row in models] == ["", "gpt-6-luna"]


def test_status_lists_the_batches_that_are_under_way(on: Stage) -> None:
    def told(*options: str) -> str:
        env = {"WAYBILL_DATABASE_URL": on.database_url, "WAYBILL_REDIS_URL": on.redis_url}
        done = CliRunner(env=env).invoke(cli, ["status", *options])
        assert done.exit_code == 0, done.output
        return done.output

    on.submit(4, models=MODELS[:1])
    on.until_sent(4)
    [batch] = json.loads(told("--json"))["batches"]
    screen = told()
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert (batch["provider"], batch["state"], batch["rows"], batch["open_rows"]) == ("anthropic", "sent", 4, 4)
    assert batch["provider_id"] in screen
    assert json.loads(told("--json"))["batches"] == []


def test_rows_that_expire_or_fail_go_on_alone_and_what_was_done_is_kept(on: Stage) -> None:
    on.sandbox.fault("batch_expired", endpoint="batch", nth=[3, 8])
    on.sandbox.fault("server_error", endpoint="batch", nth=[5])
    on.submit(20, models=MODELS[:1])
    on.until_sent(20)
    on.sandbox.advance(DAY_S)
    on.until(lambda: on.states()["succeeded"] >= 17, 30, "the rows that were done")
    on.sandbox.clear_faults()
    on.until_sent(23)
    again = on.rows("select rows from provider_batches order by gathered_at desc limit 1")
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert again[0]["rows"] == 3, "only what was not done is sent again"
    assert on.states() == {"succeeded": 20}
    on.check()
    ends = on.rows("select state, count(*) as n from provider_batch_rows group by 1")
    assert {row["state"]: row["n"] for row in ends} == {"succeeded": 20, "expired": 2, "errored": 1}


def test_gpt_error_files_are_read_too(on: Stage) -> None:
    on.sandbox.fault("batch_expired", endpoint="batch", nth=[1])
    on.sandbox.fault("overloaded", endpoint="batch", nth=[2])
    on.submit(6, models=MODELS[1:])
    on.until_sent(6)
    on.sandbox.advance(DAY_S)
    on.until_sent(8)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 6}
    on.check()


def test_a_job_that_runs_out_of_time_leaves_the_batch_and_its_late_answer_is_paid_and_not_used(on: Stage) -> None:
    ids = on.submit(4, models=MODELS[:1])
    on.until_sent(4)
    on.rows("update jobs set due_at = now() + interval '3 seconds' where id = any(%s::uuid[]) returning id", ids[:3])
    on.until(lambda: on.states()["succeeded"] == 3, 30, "the hedged answers")
    hedged = {row["job_id"]: row for row in on.attempts() if row["service"] == "interactive"}
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert len(hedged) == 3
    on.check()
    fenced = [row for row in on.attempts() if row["state"] == "fenced"]
    assert len(fenced) == 3
    assert all(row["service"] == "batch" and row["cost_usd"] > 0 for row in fenced)
    story = on.rows("select reason from decisions where outcome = 'hedge'")
    assert len(story) == 3
    assert "paid and not used" in story[0]["reason"]


def test_a_batch_nobody_waits_for_any_more_is_cancelled_at_the_provider(on: Stage) -> None:
    ids = on.submit(10)
    on.until_sent(10)
    on.sandbox.advance(HOUR_S / 2)
    on.client.cancel(*ids)
    on.until_final(10)
    on.until(
        lambda: on.rows("select count(*) as n from provider_batches where cancel_at is not null")[0]["n"] == 2, 20, "x"
    )
    on.sandbox.advance(5)
    on.until_books_closed()

    assert on.states() == {"cancelled": 10}
    on.check()
    done = on.sandbox.bill()["requests"]
    assert 0 < done < 10, "what had been done is paid, the rest is not"


def test_one_cancelled_job_does_not_take_its_batch_along(on: Stage) -> None:
    ids = on.submit(6, models=MODELS[:1])
    on.until_sent(6)
    on.client.cancel(ids[0])
    on.until(lambda: on.states()["cancelled"] == 1, 10, "the cancellation")
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"cancelled": 1, "succeeded": 5}
    on.check()
    [row] = [row for row in on.attempts() if str(row["job_id"]) == ids[0]]
    assert row["state"] == "fenced"
    assert row["cost_usd"] > 0


def test_a_billing_error_pauses_the_lane_and_jobs_are_done_when_it_is_over(on: Stage) -> None:
    on.sandbox.fault("spend_limit", endpoint="batches")
    on.submit(6, models=MODELS[:1])
    paused = "select error from provider_batches where tries > 0 and state = 'gathered' and error is not null"
    on.until(lambda: len(on.rows(paused)) == 1, 20, "the pause")
    assert "paused" in on.rows(paused)[0]["error"]
    assert on.states() == {"running": 6}
    on.sandbox.clear_faults()
    on.rows(
        "update provider_batches set look_at = now() where state = 'gathered' returning id"
    )  # not to wait half a minute
    on.until_sent(6)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 6}
    on.check()


def test_what_does_not_fit_into_the_enqueued_tokens_is_sent_when_there_is_room(on: Stage) -> None:
    on.sandbox.batch_pace(enqueued_tokens=50)
    on.submit(4, models=MODELS[1:])
    on.until_sent(4)
    on.submit(4, models=MODELS[1:])
    full = "select error from provider_batches where error like '%enqueued%'"
    on.until(lambda: len(on.rows(full)) >= 1, 30, "the refusal")
    on.sandbox.advance(HOUR_S)
    on.until(lambda: on.states()["succeeded"] >= 4, 30, "the first batch")
    on.rows("update provider_batches set look_at = now() where state = 'gathered' returning id")
    on.until_sent(8)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 8}
    on.check()


def test_a_batch_that_cannot_be_seen_yet_is_asked_about_again(on: Stage) -> None:
    on.sandbox.fault("batch_hidden", endpoint="batches", delay_s=600)
    on.submit(4)
    on.until_sent(4)
    on.until(
        lambda: len(on.rows("select id from provider_batches where error like '%%does not know it%%'")) == 2,
        20,
        "the 404",
    )
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 4}
    on.check()


def test_a_weak_answer_escalates_to_the_next_model_not_to_another_lane(on: Stage) -> None:
    on.sandbox.fault("max_tokens", endpoint="batch", model="claude-haiku-5-5")
    schema = {
        "type": "object",
        "properties": {"total": {"type": "string"}},
        "required": ["total"],
        "additionalProperties": False,
    }
    on.submit(3, intent="extraction", prompt="total: {n}.00", model=None, json_schema=schema)
    on.until_sent(3)
    on.sandbox.advance(HOUR_S)
    on.until_sent(6)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    on.until_books_closed()

    assert on.states() == {"succeeded": 3}
    on.check()
    ways = {(row["number"], row["model"], row["service"], row["state"]) for row in on.attempts()}
    assert (1, "claude-haiku-5-5", "batch", "weak") in ways
    assert {way for way in ways if way[0] == 2} == {(2, "gpt-6-luna", "batch", "succeeded")}


async def test_why_shows_what_was_weighed(on: Stage) -> None:
    [job_id] = on.submit(1, models=MODELS[:1])
    on.until_sent(1)
    on.sandbox.advance(HOUR_S)
    on.until_final()
    ledger = Ledger(on.database_url, pool_size=1)
    try:
        text = tell(await read_story(ledger, job_id))
    finally:
        await ledger.close()

    assert "claude-haiku-5-5 batch" in text
    assert "interactive" in text
    assert "in time with" in text.replace("\n" + " " * 15, " ")
    assert "expected $" in text.replace("\n" + " " * 15, " ")


def test_the_ledger_books_the_batch_at_half_the_interactive_price(on: Stage) -> None:
    on.submit(2, models=MODELS, prompt="Sum up note 1{n}.")
    on.submit(2, models=MODELS, latency="interactive", prompt="Sum up note 2{n}.")
    on.until_sent(2)
    on.sandbox.advance(HOUR_S)
    on.until_final()

    cost = {(row["model"], row["service"]): row["cost_usd"] for row in on.attempts()}
    for model in MODELS:
        assert cost[model, "batch"] * 2 == cost[model, "interactive"]
