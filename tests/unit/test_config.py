"""`waybill config` shows where values come from, never a secret, and says what is wrong in one line with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from waybill.cli import cli
from waybill.cli.config import unknown
from waybill.settings import Settings

SECRETS = ("hunter2", "sk-one", "sk-two", "flower-pass")


def run(*words: str, **env: str) -> Result:
    return CliRunner(env=dict.fromkeys(_ours()) | env).invoke(cli, ["config", *words])


def _ours() -> set[str]:
    import os

    return {name for name in os.environ if name.startswith(("WAYBILL_", "ANTHROPIC_", "OPENAI_"))}


FULL = {
    "WAYBILL_DATABASE_URL": "postgresql+psycopg://waybill:hunter2@db:5432/waybill",
    "WAYBILL_REDIS_URL": "redis://:hunter2@redis:6379/0",
    "ANTHROPIC_API_KEY": "sk-one,sk-two",
    "WAYBILL_FLOWER_PASSWORD": "flower-pass",
}


def test_values_stand_with_their_source_and_secrets_are_masked() -> None:
    shown = run("show", **FULL)

    assert shown.exit_code == 0, shown.output
    for secret in SECRETS:
        assert secret not in shown.output
    assert "postgresql+psycopg://waybill:***@db:5432/waybill" in shown.output
    lines = {line.split()[0]: line.split()[1:] for line in shown.output.splitlines()}
    assert lines["ANTHROPIC_API_KEY"] == ["environment", "***,", "***"]
    assert lines["WAYBILL_LEASE_S"][0] == "default"
    assert set(lines) == {Settings.variable(name) for name in Settings.model_fields}


def test_json_has_every_setting_once() -> None:
    rows = json.loads(run("show", "--json", **FULL).output)

    assert [row["variable"] for row in rows] == [Settings.variable(name) for name in Settings.model_fields]
    assert not any(secret in str(rows) for secret in SECRETS)


def test_a_misspelt_variable_is_named_with_the_right_one() -> None:
    assert unknown({"WAYBILL_DATABSE_URL": "x"}) == [
        "WAYBILL_DATABSE_URL is no setting; did you mean WAYBILL_DATABASE_URL?"
    ]

    checked = run("check", WAYBILL_CONCURENCY="50")
    assert checked.exit_code == 1
    assert "wrong  environment: WAYBILL_CONCURENCY is no setting; did you mean WAYBILL_CONCURRENCY?" in checked.output


def test_the_shipped_configuration_is_right() -> None:
    checked = run("check")

    assert checked.exit_code == 0, checked.output
    assert "ok     price of claude-haiku-5-5" in checked.output


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"WAYBILL_CONCURRENCY": "many"}, "wrong  settings: WAYBILL_CONCURRENCY"),
        ({"WAYBILL_POLICY_FILE": "POLICY"}, "wrong  policy: "),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_1(wrong: dict[str, str], said: str, tmp_path: Path) -> None:
    broken = tmp_path / "policy.toml"
    broken.write_text('version = "x"\nflagship = 3\n')

    checked = run("check", **{name: value.replace("POLICY", str(broken)) for name, value in wrong.items()})

    assert checked.exit_code == 1
    assert said in checked.output


def test_services_that_do_not_answer_are_said_without_their_password() -> None:
    checked = run(
        "check", "--connect",
        WAYBILL_DATABASE_URL="postgresql+psycopg://u:hunter2@127.0.0.1:9/x", WAYBILL_REDIS_URL="redis://:hunter2@127.0.0.1:9/0",
    )  # fmt: skip

    assert checked.exit_code == 1
    assert "wrong  ledger: does not answer" in checked.output
    assert "wrong  redis: does not answer" in checked.output
    assert "hunter2" not in checked.output
