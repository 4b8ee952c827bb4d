"""The jobs API without a fleet: what is accepted, refused, listed and stopped before any call."""

from __future__ import annotations

import json

from tests.security.conftest import Api, bearer

JOB = {"intent": "extraction", "prompt": "Total?"}


def test_a_job_is_accepted_shown_listed_and_cancelled(api: Api) -> None:
    key = api.key()

    made = api.post("/v1/jobs", key, json={**JOB, "priority": "batch", "metadata": {"row": "7"}})
    job = made.json()
    listed = api.get("/v1/jobs?limit=5&state=queued", key).json()
    going_on = api.get(f"/v1/jobs/{job['id']}/result", key)
    cancelled = api.post(f"/v1/jobs/{job['id']}/cancel", key).json()

    assert (made.status_code, job["state"], job["priority"], job["usd"]) == (202, "queued", "batch", "0")
    assert [row["id"] for row in listed["data"]] == [job["id"]]
    assert (going_on.status_code, going_on.headers["retry-after"]) == (202, "1")
    assert cancelled["state"] == "cancelled"
    result = api.get(f"/v1/jobs/{job['id']}/result", key)
    assert (result.status_code, result.json()["error"]["code"]) == (200, "cancelled")
    assert api.sql("select key_id from jobs")[0]["key_id"].startswith("key_")


def test_an_idempotency_key_gives_the_earlier_job(api: Api) -> None:
    key = api.key()

    first = api.post("/v1/jobs", key, json=JOB, headers={"idempotency-key": "k1"})
    again = api.post("/v1/jobs", key, json=JOB, headers={"idempotency-key": "k1"})

    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]


def test_pages_hold_every_job_once(api: Api) -> None:
    key = api.key()
    made = {api.post("/v1/jobs", key, json=JOB).json()["id"] for _ in range(7)}

    seen, after = [], ""
    while True:
        page = api.get(f"/v1/jobs?limit=3{after}", key).json()
        seen += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"

    assert sorted(seen, reverse=True) == seen
    assert set(seen) == made


def test_a_run_takes_good_lines_and_names_bad_ones(api: Api) -> None:
    key = api.key()
    lines = [json.dumps(JOB), "{not json", json.dumps({**JOB, "colour": 1}), "", json.dumps({**JOB, "prompt": "B?"})]

    made = api.post("/v1/runs?name=nightly", key, content="\n".join(lines), headers={"idempotency-key": "r"})
    again = api.post("/v1/runs?name=nightly", key, content="\n".join(lines), headers={"idempotency-key": "r"})

    body = made.json()
    assert (made.status_code, body["accepted"], body["rejected"]) == (202, 2, 2)
    assert [(error["line"], error["param"]) for error in body["errors"]] == [(2, None), (3, "colour")]
    assert again.json()["id"] == body["id"]
    run = api.get(f"/v1/runs/{body['id']}", key).json()
    assert (run["name"], run["jobs"], run["unfinished"]) == ("nightly", {"queued": 2}, 2)
    other = api.post("/v1/runs", key, content=json.dumps({**JOB, "prompt": "C?"}), headers={"idempotency-key": "r"})
    assert other.status_code == 409

    assert api.post(f"/v1/runs/{body['id']}/cancel", key).json()["jobs"] == {"cancelled": 2}
    results = [json.loads(line) for line in api.get(f"/v1/runs/{body['id']}/results", key).text.splitlines()]
    assert [(row["line"], row["state"]) for row in results] == [(1, "cancelled"), (5, "cancelled")]


def test_events_tell_the_state_and_the_end(api: Api) -> None:
    key = api.key()
    job = api.post("/v1/jobs", key, json=JOB).json()
    api.post(f"/v1/jobs/{job['id']}/cancel", key)

    answer = api.get(f"/v1/jobs/{job['id']}/events", key)

    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == ["state", "end"]


PATHS = {
    "/v1/jobs/nonsense": 404,
    "/v1/jobs/' or 1=1": 404,
    "/v1/jobs/0199aaaa-0000-7000-8000-000000000000": 404,
    "/v1/runs/nonsense": 404,
    "/v1/jobs?limit=0": 400,
    "/v1/jobs?limit=99999999999999999999": 400,
    "/v1/jobs?after=x": 400,
    "/v1/jobs?state=done": 400,
    "/v1/jobs?run=%00": 400,
}
WRONG: tuple[dict[str, object], ...] = (
    {"prompt": ""},
    {"intent": "Extract it"},
    {"prompt": "a\ud800"},
    {"idempotency_key": "a\u0000b"},
    {"model": "a\u0000b"},
    {"deadline_s": -1},
    {"max_output_tokens": 0},
    {"priority": "urgent"},
    {"messages": [{"role": "system", "content": "x"}]},
    {"labels": ["a"]},
)


def test_what_is_not_there_is_404_and_what_is_wrong_is_400(api: Api) -> None:
    key = api.key()

    assert {path: api.get(path, key).status_code for path in PATHS} == PATHS


def test_a_wrong_job_is_refused_by_field_and_leaves_nothing(api: Api) -> None:
    key = api.key()
    for fields in WRONG:
        answer = api.post("/v1/jobs", key, content=json.dumps({**JOB, **fields}))

        assert answer.status_code == 400, fields
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert api.sql("select count(*) as n from jobs") == [{"n": 0}]


def test_feedback_is_for_jobs_with_an_answer(api: Api) -> None:
    key = api.key()
    job = api.post("/v1/jobs", key, json=JOB).json()["id"]

    assert api.post(f"/v1/jobs/{job}/feedback", key, json={"score": 0.5}).status_code == 400
    assert api.post(f"/v1/jobs/{job}/feedback", key, json={"score": 2}).status_code == 400


def test_a_used_up_budget_is_said_at_once(api: Api) -> None:
    key = api.key()
    admin = api.key("ops", "admin")
    api.post("/v1/admin/budgets", admin, json={"scope": "tenant", "subject": "acme", "cap_usd": 0})

    answer = api.post("/v1/jobs", key, json=JOB)

    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert api.sql("select count(*) as n from jobs") == [{"n": 0}]


def test_a_key_without_the_scope_is_refused(api: Api) -> None:
    key = api.key("acme", "call")

    assert api.post("/v1/jobs", key, json=JOB).status_code == 403
    assert api.http.get("/v1/webhooks", headers=bearer(key)).status_code == 403
