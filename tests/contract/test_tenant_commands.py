"""`waybill keys|tenants|budgets` on a real ledger."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from waybill.cli import cli
from waybill.ledger import keys

Waybill = Callable[..., Result]


@pytest.fixture
def waybill(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Waybill:
    monkeypatch.setenv("WAYBILL_DATABASE_URL", database_url)
    monkeypatch.delenv("WAYBILL_REDIS_URL", raising=False)
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def test_a_key_is_shown_once_listed_by_its_hint_and_revoked(waybill: Waybill) -> None:
    made = json.loads(waybill("keys", "create", "acme", "--name", "worker", "--rpm", "60", "--json").stdout)
    listed = waybill("keys", "list").stdout

    assert made["key"] not in listed
    assert f"...{made['key'][-4:]}" in listed
    assert "60/min" in listed
    assert waybill("keys", "revoke", made["id"]).exit_code == 0
    again = waybill("keys", "revoke", made["id"])
    assert (again.exit_code, "no open key" in again.stderr) == (1, True)
    assert "revoked" in waybill("keys", "list", "--all").stdout


def test_what_cannot_be_is_one_clear_line(waybill: Waybill) -> None:
    for arguments, says in [
        (("keys", "create", "a b"), "cannot be a tenant's name"),
        (("keys", "create", "acme", "--scope", "root"), "scope 'root' is unknown"),
        (("budgets", "set", "five", "--tenant", "acme"), "not an amount in USD"),
        (("budgets", "set", "5"), "say whose budget"),
        (("budgets", "set", "5", "--key", "key_no"), "no key key_no"),
        (("budgets", "set", "5", "--run", "nightly"), "no run 'nightly'"),
        (("budgets", "remove", "--tenant", "acme"), "has no such budget"),
        (("tenants", "suspend", "nobody"), "no tenant nobody"),
    ]:
        result = waybill(*arguments)

        told = result.stderr or str(result.exception)
        assert result.exit_code != 0
        assert says in told


def test_a_budget_is_set_changed_listed_and_lifted(waybill: Waybill) -> None:
    made = json.loads(waybill("keys", "create", "acme", "--budget", "2.50", "--json").stdout)
    waybill("budgets", "set", "$5", "--tenant", "acme", "--at-cap", "cheaper", "--alert", "90")
    waybill("budgets", "set", "6", "--tenant", "acme", "--at-cap", "cheaper")

    rows = json.loads(waybill("budgets", "list", "--json").stdout)

    assert [(row["scope"], row["subject"], row["period"], float(row["cap_usd"]), row["at_cap"]) for row in rows] == [
        ("key", made["id"], "total", 2.5, "stop"),
        ("tenant", "acme", "month", 6.0, "cheaper"),
    ]
    assert "$0.0000 of $6.00 (0 %)" in waybill("budgets", "list").stdout
    assert waybill("budgets", "remove", "--tenant", "acme").exit_code == 0
    assert "acme" not in waybill("budgets", "list").stdout.replace(made["id"], "")


def test_tenants_are_listed_with_keys_and_suspended(waybill: Waybill) -> None:
    waybill("tenants", "add", "acme", "--weight", "3")
    waybill("keys", "create", "acme")

    assert waybill("tenants", "suspend", "acme").exit_code == 0
    assert "suspended" in waybill("tenants", "list").stdout
    waybill("tenants", "reopen", "acme")
    assert "weight 3" in waybill("tenants", "list").stdout
    assert "   1 keys" in waybill("tenants", "list").stdout


def test_the_key_that_was_shown_is_the_one_the_ledger_knows(waybill: Waybill) -> None:
    secret = waybill("keys", "create", "acme").stdout.strip()

    assert secret.startswith("wb-")
    assert len(keys.hash_of(secret)) == 64
