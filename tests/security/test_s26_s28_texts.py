"""S26 to S28: texts from outside are never evaluated, never forge a log line, never make metrics grow."""

from __future__ import annotations

import json
import logging

import pytest

from producers.template import FieldProblem, parse
from tests.security.conftest import Api
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
