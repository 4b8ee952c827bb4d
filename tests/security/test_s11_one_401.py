"""S11: no key, a wrong, an expired, a revoked one, and SQL as a key get one and the same 401."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.security.conftest import Api, bearer


def test_s11_every_bad_key_gets_the_same_answer(api: Api) -> None:
    expired = api.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked = api.key()
    api.sql("update api_keys set revoked_at = now() where expires_at is null")
    good = api.key()
    bad = [None, "", "wb-wrong", good[:-1], good + "x", expired, revoked, "' OR '1'='1", "x" * 100_000, "\u00e4"]

    answers = [api.http.get("/v1/models", headers=bearer(key)) for key in bad if key is None or key.isascii()]
    answers += [api.http.get("/v1/models", headers={"x-api-key": "' OR '1'='1"})]

    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert api.get("/v1/models", good).status_code == 200


@pytest.mark.parametrize("version", [None, "2026-10-21"])
def test_s11_the_401_has_the_shape_of_the_dialect(api: Api, version: str | None) -> None:
    api.key()

    answer = api.http.get("/v1/models", headers={} if version is None else {"anthropic-version": version})

    kind = answer.json()["error"]["type"]
    assert kind == ("invalid_request_error" if version is None else "authentication_error")


def test_s11_a_key_works_in_either_header_until_it_is_revoked(api: Api) -> None:
    key = api.key()
    assert api.http.get("/v1/models", headers={"x-api-key": key}).status_code == 200

    api.sql("update api_keys set revoked_at = now()")
    api.gateway.keyring._known.clear()  # what it remembers for 5 seconds
    api.key("other")

    assert api.get("/v1/models", key).status_code == 401


def test_development_mode_ends_with_the_first_key(api: Api) -> None:
    before = api.get("/v1/models").status_code

    key = api.key()
    api.gateway.keyring._any_until = 0.0

    assert (before, api.get("/v1/models").status_code, api.get("/v1/models", key).status_code) == (200, 401, 200)


def test_a_suspended_tenant_is_told_so(api: Api) -> None:
    key = api.key("acme")
    api.sql("update tenants set suspended_at = now()")

    assert api.get("/v1/models", key).status_code == 403
