"""S1 to S7: garbage, forged and repeated messages. The worker goes on, and no provider is called."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fault.harness import Scene, check, until
from waybill.names import EXECUTE_TASK, QUARANTINE_KEY
from workers.guard import LOOKING, Refused, check_broadcast, check_doorbell

QUEUE = "anthropic.hi"
JOB = "01a20ac1-47d4-7628-9158-bba47e1c60cc"


def doorbell(
    ids: Any = (JOB,), *, embed: Any = None, headers: dict[str, Any] | None = None, **changed: Any
) -> dict[str, Any]:
    """A message as our own producer makes it, to be spoiled."""
    body = json.dumps([[list(ids) if isinstance(ids, tuple) else ids], {}, embed or {"callbacks": None}])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": EXECUTE_TASK, "id": str(uuid.uuid4()), "retries": 0, **(headers or {})},
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "body_encoding": "base64",
            "delivery_info": {"exchange": "waybill", "routing_key": QUEUE},
        },
        **changed,
    }


GARBAGE: dict[str, bytes | dict[str, Any]] = {
    "not json": b"not json",
    "empty": b"",
    "bytes": b"\xff\xfe\x00\x80",
    "cut": json.dumps(doorbell()).encode()[:200],
    "list": b"[]",
    "empty object": b"{}",
    "deep": b"[" * 60_000,
    "large": b'"' + b"x" * 5_000_000 + b'"',
    "no properties": {"body": "", "headers": {}, "content-type": "application/json", "content-encoding": "utf-8"},
    "pickle": doorbell(**{"content-type": "application/x-python-serialize", "content-encoding": "binary"}),
    "yaml": doorbell(**{"content-type": "application/x-yaml"}),
    "msgpack": doorbell(**{"content-type": "application/x-msgpack", "content-encoding": "binary"}),
    "task of a newer version": doorbell(headers={"task": "waybill.judge"}),
    "built-in task": doorbell(headers={"task": "celery.chord"}),
    "callbacks": doorbell(embed={"callbacks": [{"task": EXECUTE_TASK, "args": [[JOB]]}]}),
    "errbacks": doorbell(embed={"errbacks": [{"task": EXECUTE_TASK, "args": [[JOB]]}]}),
    "chord": doorbell(embed={"chord": {"task": EXECUTE_TASK}}),
    "compressed": doorbell(headers={"compression": "zlib"}),
    "eta": doorbell(headers={"eta": "yesterday"}),
    "ids are SQL": doorbell(("'; drop table jobs; --",)),
    "ids are a number": doorbell(7),
    "too many ids": doorbell(tuple(str(uuid.uuid4()) for _ in range(101))),
    "another exchange": doorbell(
        properties={
            "delivery_tag": "1",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": QUEUE},
        }
    ),
    "body is not base64": doorbell(body="%%%"),
    "body is no list": doorbell(body=base64.b64encode(b'{"task": "x"}').decode()),
}


def raw(message: bytes | dict[str, Any]) -> bytes:
    """As it lies in the list."""
    return message if isinstance(message, bytes) else json.dumps(message).encode()


def in_json(value: Any) -> bytes:
    """Any value as a list entry."""
    return json.dumps(value).encode()


def test_a_doorbell_of_ours_passes() -> None:
    check_doorbell(raw(doorbell()))
    check_doorbell(raw(doorbell(tuple(str(uuid.uuid4()) for _ in range(100)))))


@pytest.mark.parametrize("name", GARBAGE)
def test_s01_s02_s06_everything_else_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(Refused) as refused:
        check_doorbell(raw(GARBAGE[name]))

    assert 0 < len(str(refused.value)) < 60


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(in_json))
def test_s01_any_bytes_are_refused_and_nothing_else_is_raised(entry: bytes) -> None:
    with pytest.raises(Refused):
        check_doorbell(entry)


@given(
    st.sampled_from(["headers", "properties", "body", "content-type", "content-encoding"]),
    st.none() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()),
)
def test_s01_a_spoiled_field_is_refused(field: str, value: Any) -> None:
    message = doorbell() | {field: value}

    with pytest.raises(Refused):
        check_doorbell(raw(message))


@pytest.mark.parametrize("method", ["shutdown", "revoke", "terminate", "pool_restart", "rate_limit", "cancel_consumer"])
def test_s07_a_broadcast_that_changes_a_worker_is_refused(method: str) -> None:
    with pytest.raises(Refused, match="changes a worker"):
        check_broadcast(broadcast(method))


@pytest.mark.parametrize("method", sorted(LOOKING))
def test_s07_a_broadcast_that_looks_passes(method: str) -> None:
    check_broadcast(broadcast(method))


def broadcast(method: str, **arguments: Any) -> dict[str, Any]:
    """A command as `celery inspect` and Flower send it."""
    body = json.dumps({"method": method, "arguments": arguments, "destination": None, "reply_to": None, "ticket": "t"})
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"clock": 1, "expires": None},
        "properties": {
            "delivery_tag": "1",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
        },
    }


def test_s01_garbage_on_a_queue_is_put_aside_and_the_worker_goes_on(scene: Scene) -> None:
    pids = {name: scene.fleet.pid(name) for name in scene.fleet.names}
    with scene.redis() as connection:
        connection.delete(QUARANTINE_KEY)
        for message in GARBAGE.values():
            for queue in (QUEUE, "dispatch"):
                connection.lpush(queue, raw(message))
        until(lambda: connection.llen(QUARANTINE_KEY) == 2 * len(GARBAGE), 30, "all garbage is put aside", scene.told)
        entries = [json.loads(entry) for entry in connection.lrange(QUARANTINE_KEY, 0, -1)]

    scene.submit(5, one_by_one=True)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert len(scene.calls()) == 5
    assert {name: scene.fleet.pid(name) for name in scene.fleet.names if scene.fleet.alive(name)} == pids
    assert all(entry["reason"] and len(entry["begins"]) <= 1000 for entry in entries)
    assert {entry["queue"] for entry in entries} == {QUEUE, "dispatch"}


def test_s03_s04_s05_forged_and_repeated_ids_cause_no_call(scene: Scene) -> None:
    [done] = scene.submit()
    scene.until_final()
    calls = len(scene.calls())
    stranger = doorbell((str(uuid.uuid4()),))
    replay = doorbell((done,))

    with scene.redis() as connection:
        connection.lpush(QUEUE, raw(stranger), *[raw(replay) for _ in range(200)])
        connection.lpush("openai.hi", *[raw(replay) for _ in range(10)])
        connection.lpush("dispatch", *[raw(doorbell((done,), headers={"task": "waybill.dispatch"})) for _ in range(10)])
        until(lambda: connection.llen(QUEUE) + connection.llen("openai.hi") == 0, 30, "all were taken", scene.told)
    scene.submit(1)
    scene.until_final()
    verdict = check(scene)

    verdict.assert_holds()
    assert len(scene.calls()) == calls + 1


def test_s07_a_forged_shutdown_is_not_obeyed_and_flowers_questions_are_answered(scene: Scene) -> None:
    from celery import Celery

    from waybill.broker import celery_config

    app = Celery("forger", set_as_current=False)
    app.conf.update(celery_config(scene.redis_url))
    pids = {name: scene.fleet.pid(name) for name in scene.fleet.names}

    app.control.shutdown()
    app.control.rate_limit(EXECUTE_TASK, "1/h")
    with scene.redis() as connection:
        for channel in connection.pubsub_channels("*pidbox*"):
            connection.publish(channel, b"not json")
            connection.publish(channel, b"[]")
            connection.publish(channel, b'{"headers": 1}')
    workers = set(scene.fleet.names) - {"control", "gateway"}
    answered = app.control.ping(timeout=30, limit=len(workers))  # does not wait when all have answered
    app.close()
    scene.submit(3)
    scene.until_final()
    verdict = check(scene)

    assert len(answered) == len(workers), "every Celery worker answers"
    verdict.assert_holds()
    assert {name: scene.fleet.pid(name) for name in scene.fleet.names if scene.fleet.alive(name)} == pids
