"""Keys, tenants and budgets over HTTP: what the commands do, for admin keys alone."""

from __future__ import annotations

import pytest

from tests.security.conftest import Api, bearer


def test_a_key_made_over_http_opens_the_api_and_is_shown_once(api: Api) -> None:
    admin = api.key("ops", "admin")

    made = api.post("/v1/admin/keys", admin, json={"tenant": "acme", "name": "worker", "days": 1})
    listed = api.get("/v1/admin/keys?tenant=acme", admin)

    secret = made.json()["key"]
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    assert api.get("/v1/models", secret).status_code == 200
    assert secret not in listed.text
    assert [row["id"] for row in listed.json()["data"]] == [made.json()["id"]]
    assert "hash" not in listed.json()["data"][0]

    gone = api.http.delete(f"/v1/admin/keys/{made.json()['id']}", headers=bearer(admin))
    assert gone.status_code == 200
    assert api.http.delete(f"/v1/admin/keys/{made.json()['id']}", headers=bearer(admin)).status_code == 404


@pytest.mark.parametrize("scopes", [("call",), ("jobs",), ("call", "jobs")])
def test_other_keys_may_not(api: Api, scopes: tuple[str, ...]) -> None:
    key = api.key("acme", *scopes)

    for path in ("/v1/admin/keys", "/v1/admin/tenants", "/v1/admin/budgets"):
        assert api.get(path, key).status_code == 403
        assert api.post(path, key, json={}).status_code == 403


def test_budgets_are_set_listed_and_lifted(api: Api) -> None:
    admin = api.key("ops", "admin")
    body = {"scope": "tenant", "subject": "acme", "cap_usd": "5.25", "at_cap": "park", "period": "day"}

    made = api.post("/v1/admin/budgets", admin, json=body).json()
    changed = api.post("/v1/admin/budgets", admin, json={**body, "cap_usd": 7}).json()
    listed = api.get("/v1/admin/budgets", admin).json()["data"]
    lifted = api.http.delete("/v1/admin/budgets?scope=tenant&subject=acme", headers=bearer(admin))

    assert (made["cap_usd"], made["at_cap"]) == ("5.250000000000", "park")
    assert made["id"] == changed["id"]
    assert [row["cap_usd"] for row in listed] == ["7.000000000000"]
    assert lifted.status_code == 200
    assert api.get("/v1/admin/budgets", admin).json()["data"] == []


WRONG: list[tuple[str, dict[str, object], str]] = [
    ("/v1/admin/keys", {"tenant": "a b"}, "tenant"),
    ("/v1/admin/keys", {"tenant": "a", "is_admin": True}, "is_admin"),
    ("/v1/admin/keys", {"tenant": "a", "scopes": ["root"]}, "scopes"),
    ("/v1/admin/budgets", {"scope": "tenant", "subject": "a", "cap_usd": "NaN"}, "cap_usd"),
    ("/v1/admin/budgets", {"scope": "tenant", "subject": "a", "cap_usd": -1}, "cap_usd"),
    ("/v1/admin/budgets", {"scope": "key", "subject": "key_none", "cap_usd": 1}, "subject"),
    ("/v1/admin/budgets", {"scope": "run", "subject": "'; drop table runs", "cap_usd": 1}, "subject"),
    ("/v1/admin/budgets", {"scope": "tenant", "subject": "a\u0000", "cap_usd": 1}, "subject"),
    ("/v1/admin/tenants", {"name": "x", "weight": 0}, "weight"),
]


def test_a_wrong_field_is_named(api: Api) -> None:
    admin = api.key("ops", "admin")
    for path, body, names in WRONG:
        answer = api.post(path, admin, json=body)

        assert answer.status_code in (400, 404), body
        assert names in str(answer.json()["error"]["param"])


def test_tenants_are_added_suspended_and_reopened(api: Api) -> None:
    admin = api.key("ops", "admin")
    key = api.key("acme")

    assert api.post("/v1/admin/tenants", admin, json={"name": "acme"}).status_code == 409
    assert api.post("/v1/admin/tenants", admin, json={"name": "new", "weight": 3}).status_code == 201
    stopped = api.http.patch("/v1/admin/tenants/acme", headers=bearer(admin), json={"suspended": True})
    assert stopped.status_code == 200
    api.gateway.keyring._known.clear()
    assert api.get("/v1/models", key).status_code == 403
    api.http.patch("/v1/admin/tenants/acme", headers=bearer(admin), json={"suspended": False})
    api.gateway.keyring._known.clear()
    assert api.get("/v1/models", key).status_code == 200
