"""S14, S15: what only Waybill may say, and what would send a request elsewhere, is refused by name, never ignored."""

from __future__ import annotations

from tests.security.conftest import Api

OURS = ("tenant", "tenant_id", "key_id", "cost", "state", "lease_token", "is_admin", "provider", "route", "run_id")
ELSEWHERE = ("base_url", "api_base", "api_key", "extra_headers", "extra_body", "proxy", "organization", "wire")


def test_s14_a_client_cannot_say_what_only_waybill_knows(api: Api) -> None:
    key = api.key()
    for name in OURS:
        answer = api.post("/v1/jobs", key, json={"intent": "extraction", "prompt": "x", name: "y"})

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_s15_a_client_cannot_choose_where_a_call_goes_or_with_which_key(api: Api) -> None:
    key = api.key()
    for name in ELSEWHERE:
        for value in ("https://evil.example", {"authorization": "x"}):
            answer = api.post("/v1/jobs", key, json={"intent": "extraction", "prompt": "x", name: value})

            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        line = api.post("/v1/runs", key, json={"intent": "extraction", "prompt": "x", name: "y"}).json()
        assert (line["accepted"], line["errors"][0]["param"]) == (0, name)
    assert api.sql("select count(*) as n from jobs") == [{"n": 0}]
