"""What a key may see of the dashboard: the fleet with `admin`, its own tenant's jobs with `jobs`, nothing without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.security.conftest import Api
from waybill import Client

FILES = ("/dashboard", "/dashboard/app.js", "/dashboard/app.css")


def test_the_page_itself_is_for_everybody_and_holds_nothing(api: Api, closed: Callable[..., str]) -> None:
    for path in FILES:
        answer = api.get(path)
        assert answer.status_code == 200
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "'unsafe-inline'" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/dashboard/state", "/dashboard/live"])
def test_the_fleet_is_shown_to_admin_keys_only(api: Api, closed: Callable[..., str], path: str) -> None:
    assert api.get(path).status_code == 401
    refused = api.get(path, closed("acme", "call", "jobs"))
    assert refused.status_code == 403
    assert "scope admin" in refused.json()["error"]["message"]


def test_an_admin_key_sees_the_fleet(api: Api, closed: Callable[..., str]) -> None:
    answer = api.get("/dashboard/state", closed("ops", "admin"))

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["ledger"] is None


def test_a_job_is_shown_to_its_tenant_and_to_admin_without_the_tenants_name(
    api: Api, closed: Callable[..., str]
) -> None:
    with Client(api.database_url, api.redis_url, tenant="acme-of-springfield") as client:
        job_id = client.submit(intent="extraction", prompt="CANARY-PROMPT")
    path = f"/dashboard/jobs/{job_id}"

    assert api.get(path).status_code == 401
    assert api.get(path, closed("acme-of-springfield", "call")).status_code == 404
    foreign, absent = (
        api.get(path, closed("other", "jobs")),
        api.get("/dashboard/jobs/" + "0" * 12, closed("other", "jobs")),
    )
    assert (foreign.status_code, absent.status_code) == (404, 404)
    assert foreign.json()["error"]["message"].replace(job_id, "0" * 12) == absent.json()["error"]["message"]
    for key in (closed("acme-of-springfield", "jobs"), closed("ops", "admin")):
        story = api.get(path, key)
        assert story.status_code == 200
        assert "asked for" in story.json()["story"]
        assert "springfield" not in story.text
        assert "CANARY" not in story.text
