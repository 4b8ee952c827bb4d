"""R24, R25: jobs are cancelled in every state, and carry every kind of text."""

from __future__ import annotations

import json
import time
from statistics import median

import pytest

from tests.fault.harness import Scene, check
from waybill.errors import InvalidJob
from waybill.ledger.requeue import REQUEUE

TEXTS = {
    "one byte": "x",
    "1 MB": "Invoice 7. " * 95_000,
    "NUL": "before\x00after",
    "escapes": "\x1b[31m\r\n\t\x7f",
    "right to left": "\u202eshalom \u05e9\u05dc\u05d5\u05dd \u202c",
    "emoji": "\U0001f469\u200d\U0001f4bb\U0001f9fe",
    "not characters": "\ufffe\uffff\U0010ffff",
    "json": '{"a": [1, NaN, "\\u0000", "\\ud800"]}',
    "sql": "'; drop table jobs; -- %(ids)s %s {0}",
}


def test_r24_cancelled_in_any_state_no_new_call_is_made_and_calls_under_way_are_booked(scene: Scene) -> None:
    scene.sandbox.latency("fixed:700ms")
    scene.sandbox.fault("rate_limit", probability=0.2, retry_after_s=0.5)
    ids = scene.submit(100, one_by_one=False)
    order = scene.rng.sample(ids, len(ids))

    cancelled: dict[str, float] = {}
    for start in range(0, 100, 10):
        part = order[start : start + 10]
        scene.client.cancel(*part)
        cancelled |= dict.fromkeys(part, time.time())
        time.sleep(scene.rng.uniform(0.0, 0.3))
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert set(verdict.states) <= {"cancelled", "succeeded"}
    assert verdict.states["cancelled"] > 0
    for row in scene.attempts():
        begun_s = row["started_at"].timestamp() - cancelled[str(row["job_id"])]
        assert begun_s < 0.5, "an attempt began after its job had been cancelled"


def test_r24_a_cancelled_call_ends_within_a_heartbeat(scene: Scene) -> None:
    scene.sandbox.latency("fixed:5s")
    ids = scene.submit(3) + scene.submit(3)
    scene.until_calls(6)

    scene.client.cancel(*ids)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"cancelled": 6}
    assert not scene.calls(delivered=True), "the calls were let run to their end"
    assert {row["state"] for row in scene.attempts()} == {"cancelled"}


def test_r24_requeued_jobs_run_again_and_keep_their_costs(scene: Scene) -> None:
    scene.sandbox.fault("forbidden")  # a refused account would make the jobs wait, not fail
    ids = scene.submit(5)
    scene.until_final()
    assert scene.states() == {"failed": 5}

    scene.sandbox.clear_faults()
    moved = scene.rows(
        REQUEUE.replace("%(ids)s", "%s").replace("%(run_id)s", "null").replace("%(deadline_s)s", "null"), ids
    )
    scene.until_final()
    verdict = check(scene, max_attempts=5)

    assert len(moved) == 5
    verdict.assert_holds()
    assert verdict.states == {"succeeded": 5}


def test_r25_every_text_comes_back_as_it_was_or_is_refused_at_the_door(scene: Scene) -> None:
    ids = {
        name: scene.submit(prompt=f"[{name}] {text}", metadata={"text": text[:500]})[0] for name, text in TEXTS.items()
    }
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert verdict.states == {"succeeded": len(TEXTS)}
    for name, text in TEXTS.items():
        assert scene.client.result(ids[name], timeout_s=5).metadata == {"text": text[:500]}
        [row] = scene.rows("select body from payloads where job_id = %s", ids[name])
        assert json.loads(row["body"])["prompt"] == f"[{name}] {text}"


@pytest.mark.parametrize(
    "text", ["", "\ud800", "x\udfff", "y" * (8 * 1024 * 1024 + 1)], ids=["none", "high", "low", "9 MB"]
)
def test_r25_a_text_that_nobody_can_carry_is_refused_before_it_is_accepted(scene: Scene, text: str) -> None:
    with pytest.raises(InvalidJob, match="prompt"):
        scene.client.submit(intent="summarization", prompt=text, tenant=scene.act)

    assert scene.jobs() == {}


def test_r25_a_schema_nested_seven_thousand_deep_is_refused(scene: Scene) -> None:
    schema: dict[str, object] = {"type": "object"}
    for _ in range(7000):
        schema = {"type": "object", "properties": {"a": schema}}

    with pytest.raises(InvalidJob, match="json_schema"):
        scene.client.submit(intent="extraction", prompt="x", json_schema=schema, tenant=scene.act)

    assert scene.jobs() == {}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}, "required": ["a"]},
    ],
    ids=["pattern that is none", "reference to nothing"],
)
def test_r26_a_schema_that_cannot_be_checked_does_not_cost_its_worker(scene: Scene, schema: dict[str, object]) -> None:
    schema |= {"additionalProperties": False}
    try:
        scene.submit(intent="extraction", prompt="a: b", json_schema=schema)
    except InvalidJob:
        return
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    [row] = scene.jobs().values()
    assert row["losses"] == 0, "the worker was given up although only the job was wrong"
    assert row["state"] in ("failed", "succeeded")


def test_r17_a_producer_that_submits_while_others_wait_stays_quick(scene: Scene) -> None:
    """One worker's backlog does not hold the producer up: accepting a job is one insert."""

    def usual_s() -> float:
        times = []
        for _ in range(10):
            began = time.monotonic()
            scene.submit(1)
            times.append(time.monotonic() - began)
        return median(times)

    scene.sandbox.latency("fixed:300ms")
    without_s = usual_s()
    scene.submit(400, priority="lo")
    with_backlog_s = usual_s()
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    # Waiting for only one of the backlog's calls would take 300 ms; an insert takes a few.
    assert with_backlog_s < 10 * without_s
