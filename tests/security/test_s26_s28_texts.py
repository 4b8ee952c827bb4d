"""S26 to S28: texts from outside are never evaluated, never forge a log line, never make metrics grow."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from redis.asyncio import Redis

from producers.template import FieldProblem, parse
from tests.security.conftest import POLICY, Api
from waybill.ledger import queries
from waybill.ledger.engine import Ledger
from workers.exporter import Exporter
from workers.policywatch import PolicyWatch
from workers.runtime import SHIPPED_POLICY
from workers.telemetry import emit

NASTY = ("a\r\nFORGED event=x", "\x1b[31mred", "${jndi:ldap://x/a}", "a\u2028b", 'quote " and \\')


@pytest.mark.parametrize("text", ["{{7*7}}", "%s %(a)s", "{{x.__class__}}", "$x $(x)", "<%= 1 %>", "{% if 1 %}"])
def test_s26_a_template_substitutes_fields_and_nothing_else(text: str) -> None:
    if text == "{% if 1 %}":  # a field of that name, which no row has
        with pytest.raises(FieldProblem):
            parse(text, "prompt").render({"x": "y"})
        return

    assert parse(text, "prompt").render({"x": "y"}) == text.replace("{{", "{").replace("}}", "}")


def test_s26_attributes_and_missing_fields_are_fields_that_are_not_there() -> None:
    for text in ("{x.__class__}", "{x[0]}", "{missing}", "{x!r}", "{x:>10}"):
        with pytest.raises(FieldProblem):
            parse(text, "prompt").render({"x": "y"})


def test_s26_the_jobs_api_takes_prompts_as_they_are(api: Api) -> None:
    text = "{x.__class__} {{7*7}} %s ${jndi:ldap://x}"

    api.post("/v1/jobs", api.key(), json={"intent": "extraction", "prompt": text})

    assert json.loads(api.sql("select body from payloads")[0]["body"])["prompt"] == text


@pytest.mark.parametrize("text", NASTY)
def test_s27_an_event_is_one_line_whatever_is_in_it(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="waybill"):
        emit("job.failed", job="j", attempt=1, code="x", reason=text)

    [record] = caplog.records
    line = record.getMessage()
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_s27_metadata_of_clients_is_not_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        api.post(
            "/v1/jobs",
            api.key(),
            json={"intent": "extraction", "prompt": "CANARY-P", "metadata": {"k": "CANARY-M\r\nFORGED"}},
        )

    assert "CANARY" not in caplog.text


def test_s28_invented_models_leave_nothing_behind(api: Api) -> None:
    key = api.key()
    for number in range(50):
        body = {"model": f"model-{number}", "messages": [{"role": "user", "content": "x"}]}

        assert api.post("/v1/chat/completions", key, json=body).status_code == 404
    assert api.sql("select count(*) as n from jobs") == [{"n": 0}]
    assert len(api.get("/v1/models", key).json()["data"]) < 50


def invent(api: Api, key: str, names: range) -> None:
    """Hand over jobs for models that nobody has, as batch and as single jobs, and end them as the dispatcher does."""
    lines = "\n".join(json.dumps({"intent": "extraction", "prompt": "x", "model": f"m{n}-\N{SNOWMAN}"}) for n in names)
    answer = api.post("/v1/runs", key, content=lines.encode())
    assert (answer.status_code, answer.json()["accepted"]) == (202, len(names))
    single = api.post("/v1/jobs", key, json={"intent": "extraction", "prompt": "x", "model": f"single-{names.start}"})
    assert single.status_code == 202
    ids = [row["id"] for row in api.sql("select id::text from jobs where state = 'queued'")]
    params = {"ids": ids, "codes": ["unknown_model"] * len(ids), "errors": ["no"] * len(ids)}
    api.sql(queries.REFUSE, {**params, "policy": "test"})


def series(api: Api) -> set[str]:
    """The names and labels of all metrics that Prometheus would scrape now."""

    async def look() -> str:
        ledger, redis = Ledger(api.database_url, pool_size=2), Redis.from_url(api.redis_url)
        try:
            return await Exporter(ledger, redis, PolicyWatch(SHIPPED_POLICY, POLICY)).look()
        finally:
            await ledger.close()
            await redis.aclose()

    lines = asyncio.run(look()).splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_s28_10_000_invented_models_make_no_metric_grow(api: Api) -> None:
    key = api.key()
    invent(api, key, range(1))
    before = series(api)

    invent(api, key, range(1, 10_001))

    assert api.sql("select count(distinct model) as n from jobs")[0]["n"] > 10_000
    assert any("waybill_jobs" in one for one in before)
    assert series(api) == before
