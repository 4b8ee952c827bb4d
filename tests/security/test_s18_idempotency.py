"""S18: an idempotency key belongs to one request of one tenant."""

from __future__ import annotations

from tests.security.conftest import Api

HEADERS = {"idempotency-key": "report-17"}


def test_s18_another_body_is_a_conflict_and_another_tenant_has_keys_of_its_own(api: Api) -> None:
    acme, second, globex = api.key("acme"), api.key("acme"), api.key("globex")
    body = {"intent": "extraction", "prompt": "x"}

    first = api.post("/v1/jobs", acme, json=body, headers=HEADERS)
    other_body = api.post("/v1/jobs", acme, json={**body, "prompt": "y"}, headers=HEADERS)
    other_key = api.post("/v1/jobs", second, json=body, headers=HEADERS)
    other_tenant = api.post("/v1/jobs", globex, json={**body, "prompt": "y"}, headers=HEADERS)

    assert (first.status_code, other_body.status_code, other_tenant.status_code) == (202, 409, 202)
    assert other_key.json()["id"] == first.json()["id"]
    assert other_tenant.json()["id"] != first.json()["id"]
    assert first.json()["id"] in other_body.json()["error"]["message"]
