"""The table of events is the truth about log lines: every call fits it, and a line is what the table says."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Iterator

import pytest

from tests.fleet import ROOT
from workers import telemetry
from workers.telemetry import EVENTS, JsonLines, TextLines, emit, take_counts


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is written while the block lasts, as JSON."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    take_counts()
    telemetry.log.addHandler(handler)
    telemetry.log.setLevel(logging.DEBUG)
    yield out
    telemetry.log.removeHandler(handler)
    telemetry.log.setLevel(logging.NOTSET)


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of `emit` in the code."""
    for folder in ("workers", "producers", "waybill"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "emit":
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_event_that_is_told_is_a_row_with_these_fields() -> None:
    seen = set()
    for where, call in calls():
        assert isinstance(call.args[0], ast.Constant), f"{where}: the event's name must be written out"
        event = call.args[0].value
        assert event in EVENTS, f"{where}: {event} is not in the table"
        seen.add(event)
        fields = {keyword.arg for keyword in call.keywords if keyword.arg and keyword.arg != "level"}
        assert fields <= set(EVENTS[event].fields), f"{where}: {event} has no {fields - set(EVENTS[event].fields)}"
    assert seen == set(EVENTS), "a row that nobody tells is to be deleted"


def test_no_row_has_a_field_for_text_of_others() -> None:
    for name, event in EVENTS.items():
        assert not {"prompt", "text", "tenant", "key", "message", "answer"} & set(event.fields), name
        if name.startswith(("job.", "attempt.")):
            assert "reason" not in event.fields, f"{name}: reasons may quote an answer; they are on the ledger"


def test_a_line_is_one_json_object(lines: io.StringIO) -> None:
    emit("jobs.released", jobs=3)
    emit("service.away", service="redis", error='line 1\nline 2 "quoted"')

    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (first["event"], first["jobs"], first["level"]) == ("jobs.released", 3, "info")
    assert second["error"] == 'line 1\nline 2 "quoted"'


def test_a_traceback_names_places_and_not_what_was_given(lines: io.StringIO) -> None:
    try:
        int("CANARY-PROMPT")
    except ValueError:
        telemetry.log.exception("a bug")

    assert "CANARY" not in lines.getvalue()
    assert "ValueError at test_telemetry.py" in json.loads(lines.getvalue())["traceback"]


def test_text_lines_quote_what_has_spaces() -> None:
    record = logging.LogRecord("waybill", logging.INFO, "", 0, "%s", ("lane.changed",), None)
    record.fields = {"lane": "a/b/c", "reason": "5 of 5 failed", "seconds_s": 0.12345}

    assert TextLines().format(record).endswith("I lane.changed lane=a/b/c reason='5 of 5 failed' seconds_s=0.123")


def test_counts_are_kept_apart_by_closed_sets_only() -> None:
    take_counts()

    emit("jobs.parked", level=10, jobs=7, lane="l")
    emit("job.failed", job="j1", attempt=1, code="timeout")
    emit("job.failed", job="j2", attempt=2, code="timeout")

    assert take_counts() == {"jobs.parked": 7, "job.failed code=timeout": 2}
    assert take_counts() == {}
