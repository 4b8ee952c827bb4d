"""Each alert is provoked on a real ledger and Redis and fires on what the exporter says; nothing fires on a fleet that is well."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tests.fleet import ROOT
from tests.see.conftest import Bench
from tests.see.promrules import Looks, read
from waybill import metrics
from waybill.contract import AttemptState, CostSource, JobState
from waybill.names import BEATS_KEY, HEALTH_KEY
from workers import control

RULES = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())["groups"][0]["rules"]
ALERTS = {rule["alert"]: rule for rule in RULES}
PROMTOOL = shutil.which("promtool")


async def jobs_old(bench: Bench) -> None:
    bench.client.submit(intent="extraction", prompt="x")
    await bench.ledger.fetch("update jobs set submitted_at = now() - interval '10 minutes'")


async def no_progress(bench: Bench) -> None:
    bench.client.submit(intent="extraction", prompt="x")


async def sweeper_silent(bench: Bench) -> None:
    await bench.control.rescue()
    bench.control._done = {}  # it hangs: nothing is done any more
    await bench.redis.hset(BEATS_KEY, "rescue", time.time() - 200)


async def spend_high(bench: Bench) -> None:
    for day in range(1, 6):
        await bench.ledger.fetch(
            "insert into attempt_tallies values (date_bin('1 hour', now() - %(ago)s * interval '1 day', 'epoch'),"
            " 'extraction', 'anthropic', 'claude-haiku-5-5', 'interactive', 'succeeded', 'usage', 9, 1, 9, 1, 1, 0, 0)",
            {"ago": day},
        )
    await bench.settle(await bench.claimed(), cost_usd=Decimal("3.5"))


async def no_route(bench: Bench) -> None:
    policy = bench.exporter._watch.policy
    for model_id in policy.plans["extraction"].chain:
        lane = f"{policy.models[model_id].provider}/{model_id}/interactive"
        await bench.redis.hset(HEALTH_KEY, lane, json.dumps({"state": "open", "until": time.time() + 900}))


async def dead_letters(bench: Bench) -> None:
    claimed = await bench.claimed()
    for loss in range(control.MAX_LOSSES):
        await bench.lose_worker(claimed[0])
        if loss + 1 < control.MAX_LOSSES:
            claimed = await bench.claim(claimed[0])


async def workers_lost(bench: Bench) -> None:
    for _ in range(21):
        await bench.lose_worker((await bench.claimed())[0])


async def cost_unknown(bench: Bench) -> None:
    await bench.settle(await bench.claimed(), cost_usd=None, cost_source=CostSource.UNPRICED, flagship_usd=None)


async def stores_full(bench: Bench) -> None:
    used = (await bench.redis.info("memory"))["used_memory"]
    await bench.redis.config_set("maxmemory", int(used * 1.1))


async def quality_low(bench: Bench) -> None:
    for _ in range(3):
        await bench.settle(
            await bench.claimed(), state=JobState.FAILED, outcome="give_up", attempt_state=AttemptState.WEAK,
            error_code="unusable", flagship_usd=None,
        )  # fmt: skip


async def config_refused(bench: Bench) -> None:
    path = bench.exporter._watch._path
    path.write_text(path.read_text().replace("flagship", "flagshipp"))


async def cascade_drifted(bench: Bench) -> None:
    await bench.ledger.fetch(
        "insert into cascades (intent, chain, target, labels, quality, saving, source, model, drift)"
        " values ('sums', '{}', 0.99, 1, 1, 0, 'test', '', '30 audits')"
    )


PROVOKED: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "WaybillJobsOld": jobs_old,
    "WaybillNoProgress": no_progress,
    "WaybillSweeperSilent": sweeper_silent,
    "WaybillSpendHigh": spend_high,
    "WaybillIntentWithoutRoute": no_route,
    "WaybillDeadLetters": dead_letters,
    "WaybillWorkersLost": workers_lost,
    "WaybillCostUnknown": cost_unknown,
    "WaybillStoresFull": stores_full,
    "WaybillQualityLow": quality_low,
    "WaybillConfigRefused": config_refused,
    "WaybillCascadeDrifted": cascade_drifted,
}


async def two_looks(bench: Bench, act: Callable[[Bench], Awaitable[None]] | None) -> Looks:
    """The metrics before and after."""
    for duty in (bench.control.release, bench.control.pump, bench.control.rescue, bench.control.ring_again):
        await bench.control._carefully(duty)
    before = read(await bench.look())
    if act is not None:
        await act(bench)
    return Looks(before, read(await bench.look()), time.time())


@pytest.fixture
async def whole(bench: Bench, tmp_path: Path) -> Any:
    """A bench whose policy file may be spoilt and whose Redis may be filled."""
    copy = tmp_path / "policy.toml"
    copy.write_text(bench.exporter._watch._path.read_text())
    bench.exporter._watch._path = copy
    yield bench
    await bench.redis.config_set("maxmemory", 0)


def test_there_is_a_provocation_and_a_runbook_section_for_each_alert() -> None:
    assert set(PROVOKED) == set(ALERTS)
    runbook = (ROOT / "docs/runbook.md").read_text()
    for name, rule in ALERTS.items():
        section = re.search(rf"^## {name}\n(.+?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL)
        assert section, f"docs/runbook.md has no section {name}"
        assert "`waybill " in section[1] or "`kubectl" in section[1], f"{name}: no command"
        assert rule["annotations"]["summary"]


async def test_nothing_fires_on_a_fleet_that_is_well(whole: Bench) -> None:
    await whole.settle(await whole.claimed())

    looks = await two_looks(whole, None)

    assert {name: fired for name, rule in ALERTS.items() if (fired := looks.fires(rule["expr"]))} == {}


@pytest.mark.parametrize("name", PROVOKED)
async def test_the_alert_fires_on_what_the_exporter_says(name: str, whole: Bench, tmp_path: Path) -> None:
    looks = await two_looks(whole, PROVOKED[name])

    assert looks.fires(ALERTS[name]["expr"]), f"{name} does not fire"

    if PROMTOOL is not None:
        ours = {alert for alert, rule in ALERTS.items() if looks.fires(rule["expr"])}
        assert fired_by_prometheus(looks, tmp_path) == ours


def fired_by_prometheus(looks: Looks, folder: Path) -> set[str]:
    """The alerts that Prometheus itself finds firing: the looks as series of a quarter of an hour and of twelve minutes."""
    at = 26 * 60
    shift = {m.name for m in metrics.ALL if m.name.endswith("_timestamp_seconds")}
    series = []
    for name in sorted({*looks.before, *looks.after}):
        for labels in {*looks.before.get(name, {}), *looks.after.get(name, {})}:
            told = ",".join(f'{key}="{value}"' for key, value in sorted(labels))
            values = []
            for look in (looks.before, looks.after):
                value = look.get(name, {}).get(labels)
                if value is not None and name in shift:
                    value += at - looks.now  # promtool's clock begins at 0
                values.append("_" if value is None else repr(value))
            series.append({"series": f"{name}{{{told}}}", "values": " ".join([values[0]] * 16 + [values[1]] * 12)})
    cases = [{"eval_time": "27m", "alertname": name, "exp_alerts": []} for name in ALERTS]
    test = {
        "rule_files": [str(ROOT / "deploy/monitoring/alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": cases}],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run([str(PROMTOOL), "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True)
    return set(re.findall(r"alertname:\s*(\w+), time", done.stdout + done.stderr))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(
        [str(PROMTOOL), "check", "rules", str(ROOT / "deploy/monitoring/alerts.yaml")], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


def names_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(re.findall(r"\bwaybill_\w+", expression))


def known_names() -> set[str]:
    """Every name that the exporter can write."""
    names = {metric.name for metric in metrics.ALL}
    for metric in metrics.ALL:
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{suffix}" for suffix in ("bucket", "sum", "count")}
    return names


def test_alerts_and_the_grafana_board_name_metrics_that_exist() -> None:
    board = json.loads((ROOT / "deploy/monitoring/grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 10

    for expression in [*expressions, *(rule["expr"] for rule in RULES)]:
        assert names_in(expression), expression
        assert names_in(expression) <= known_names(), expression
        for name, selector in re.findall(r"\b(waybill_\w+)\{([^}]*)\}", expression):
            metric = next(m for m in metrics.ALL if name.startswith(m.name))
            asked = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selector))
            assert asked <= {*metric.labels, "le"}, expression


def test_the_operators_copy_of_the_rules_is_the_same() -> None:
    copy = yaml.safe_load((ROOT / "deploy/k8s/components/monitoring/alerts.yaml").read_text())

    assert copy["spec"]["groups"] == [{"name": "waybill", "rules": RULES}]


async def test_connections_are_counted_against_what_postgres_allows(bench: Bench, database_url: str) -> None:
    before = read(await bench.look())[metrics.PG_CONNECTIONS.name][frozenset()]
    held = [psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql")) for _ in range(3)]
    after = read(await bench.look())[metrics.PG_CONNECTIONS.name][frozenset()]
    for connection in held:
        connection.close()

    assert after > before
