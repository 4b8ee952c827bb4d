"""Spans of attempts and jobs: what they say, whom they hang from, that they arrive, and that they hold no text unless asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sandbox.testing import running
from tests.fleet import running_fleet
from waybill import Client, Job, trace
from waybill.contract import AttemptState, CostSource, JobState, Usage
from workers import genai, otlp
from workers.spansender import SpanSender
from workers.telemetry import take_counts
from workers.tracing import Told, Tracing
from workers.writer import Settlement

JOB_ID = "01a20ab6-a5fe-7770-990b-93f0ca91497e"
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def settlement(number: int = 1, **how: Any) -> Settlement:
    values: dict[str, Any] = {
        "state": JobState.SUCCEEDED, "outcome": "accept", "reason": "CANARY-REASON", "attempt_state": AttemptState.SUCCEEDED,
        "cost_usd": Decimal("0.0012"), "cost_source": CostSource.USAGE, "served_model": "claude-haiku-5-5-20261001",
        "usage": Usage(input_tokens=100, cache_read_tokens=900, output_tokens=50, thinking_tokens=20), "stop": "end_turn",
        "body": '{"text": "CANARY-ANSWER", "data": null}', "request_id": "req_1", "error": "CANARY-ERROR",
        **how,
    }  # fmt: skip
    return Settlement(job_id=JOB_ID, token=1, number=number, **values)


def told(**how: Any) -> Told:
    values: dict[str, Any] = {
        "job": Job(intent="extraction", prompt="CANARY-PROMPT", system="CANARY-SYSTEM", tenant="CANARY-TENANT"),
        "provider": "anthropic", "model": "claude-haiku-5-5", "service": "interactive", "intent": "extraction",
        "priority": "hi", "submitted_at": NOW, "started_at": NOW + timedelta(seconds=2),
        "ended_at": NOW + timedelta(seconds=5), "traceparent": None, "max_output_tokens": 512, **how,
    }  # fmt: skip
    return Told(**values)


def spans(*ends: tuple[Settlement, Told, JobState | None], with_text: bool = False) -> list[Span]:
    """As a collector reads them."""
    made: list[bytes] = []
    tracing = Tracing(made.append, with_text=with_text)
    for end in ends:
        tracing.settled(*end)
    return read(otlp.request(made, resource={"service.name": "waybill"}, scope="waybill"))


def read(data: bytes) -> list[Span]:
    """The spans of a request that one process sent."""
    request = ExportTraceServiceRequest.FromString(data)
    return list(request.resource_spans[0].scope_spans[0].spans)


def attributes(span: Span) -> dict[str, Any]:
    """By name, as plain values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "") for one in span.attributes}


def test_a_call_is_told_in_the_words_of_the_convention() -> None:
    call, job = spans((settlement(), told(), JobState.SUCCEEDED))

    assert call.name == "chat claude-haiku-5-5"
    assert call.kind == Span.SPAN_KIND_CLIENT
    said = attributes(call)
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.provider.name"] == "anthropic"
    assert said["gen_ai.response.model"] == "claude-haiku-5-5-20261001"
    assert said["gen_ai.usage.input_tokens"] == 1000, "cached ones included"
    assert said["gen_ai.usage.cache_read.input_tokens"] == 900
    assert said["waybill.cost.usd"] == 0.0012
    assert [one.string_value for one in said["gen_ai.response.finish_reasons"].values] == ["end_turn"]
    assert said["gen_ai.request.stream"] is False
    assert (call.end_time_unix_nano - call.start_time_unix_nano) == 3_000_000_000
    assert (job.end_time_unix_nano - job.start_time_unix_nano) == 5_000_000_000
    assert job.kind == Span.SPAN_KIND_INTERNAL
    assert attributes(job)["waybill.queued_seconds"] == 2.0


def test_attempts_hang_from_their_job_and_the_job_from_whoever_submitted_it() -> None:
    weak = settlement(
        1, state=JobState.ROUTED, outcome="escalate", attempt_state=AttemptState.WEAK, error_code="unusable"
    )
    first, second, job = spans(
        (weak, told(traceparent=PARENT), JobState.ROUTED),
        (settlement(2), told(traceparent=PARENT, model="gpt-6-luna", provider="openai"), JobState.SUCCEEDED),
    )

    assert {span.trace_id.hex() for span in (first, second, job)} == {"0af7651916cd43dd8448eb211c80319c"}
    assert first.parent_span_id == second.parent_span_id == job.span_id
    assert job.parent_span_id.hex() == "b7ad6b7169203331"
    assert first.span_id != second.span_id
    assert attributes(first)["error.type"] == "unusable"
    assert (first.status.code, second.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)


def test_a_job_outside_of_any_trace_begins_one_of_its_own_id() -> None:
    call, job = spans((settlement(), told(traceparent="nonsense"), JobState.SUCCEEDED))

    assert call.trace_id == UUID(JOB_ID).bytes
    assert job.parent_span_id == b""


def test_a_settlement_that_is_stored_twice_is_one_span() -> None:
    end = (settlement(), told(), JobState.SUCCEEDED)

    assert len({span.span_id for span in spans(end, end)}) == 2  # the attempt and the job


def test_what_the_caller_does_not_sample_is_not_sent() -> None:
    made: list[bytes] = []
    Tracing(made.append).settled(settlement(), told(traceparent=PARENT[:-1] + "0"), JobState.SUCCEEDED)

    assert made == []


@pytest.mark.parametrize("with_text", [False, True])
def test_text_is_left_out_unless_it_is_asked_for(with_text: bool) -> None:
    shown = str(spans((settlement(), told(), JobState.SUCCEEDED), with_text=with_text))

    for canary in ("CANARY-PROMPT", "CANARY-SYSTEM", "CANARY-ANSWER"):
        assert (canary in shown) == with_text
    for never in ("CANARY-TENANT", "CANARY-REASON", "CANARY-ERROR"):
        assert never not in shown


def test_spans_are_the_bytes_that_the_sdk_would_send() -> None:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status as SdkStatus
    from opentelemetry.trace.status import StatusCode

    said = {
        "word": "a", "text": "Größe " * 40, "none": "", "yes": True, "no": False, "zero": 0, "small": 127, "large": 2**40,
        "below": -1, "ratio": 0.1, "list": ("a", "b" * 200), "half a pair": "\ud800",
    }  # fmt: skip
    # The SDK leaves the trace flags out.
    ours = otlp.span(
        "chat x", (7).to_bytes(16), (8).to_bytes(8), (9).to_bytes(8),
        flags=0, kind=otlp.CLIENT, start_ns=1_795_000_000_000_000_001, end_ns=1_795_000_000_000_000_002,
        attributes=said, is_error=True,
    )  # fmt: skip
    theirs = ReadableSpan(
        "chat x",
        context=SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1)),
        parent=SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1)),
        resource=Resource({"service.name": "w"}),
        attributes={**said, "half a pair": "?"},
        kind=SpanKind.CLIENT,
        status=SdkStatus(StatusCode.ERROR),
        start_time=1_795_000_000_000_000_001,
        end_time=1_795_000_000_000_000_002,
        instrumentation_scope=InstrumentationScope("waybill"),
    )

    assert ExportTraceServiceRequest.FromString(
        otlp.request([ours], resource={"service.name": "w"}, scope="waybill")
    ) == encode_spans([theirs])


def test_a_collector_that_is_away_costs_spans_and_says_how_many() -> None:
    take_counts()
    away, got = threading.Event(), list[bytes]()

    def export(data: bytes) -> bool:
        got.append(data)
        return not away.is_set()

    away.set()
    sender = SpanSender(export, worker="w")
    sender.post(spans_bytes())
    sender.close()

    assert len(read(got[0])) == 1
    assert take_counts()["spans.lost"] == 1


def spans_bytes() -> bytes:
    """One span, unread."""
    made: list[bytes] = []
    Tracing(made.append).settled(settlement(), told(), None)
    return made[0]


@pytest.mark.parametrize("text", ["", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "01-x", PARENT + "-x", "a\x00b"])
def test_a_wrong_traceparent_is_none(text: str) -> None:
    assert trace.parse(text) is None


def test_names_are_written_in_one_module() -> None:
    for path in (Path(genai.__file__).parents[1] / "workers").rglob("*.py"):
        if path.name != "genai.py":
            assert '"gen_ai.' not in path.read_text(), path


class Collector(BaseHTTPRequestHandler):
    """An OTLP receiver over HTTP."""

    got: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        import gzip

        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        self.got.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    Collector.got = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Collector.got
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_of_a_fleet_arrive_at_an_otlp_receiver(
    database_url: str, redis_url: str, tmp_path: Path, collector: tuple[str, list[ExportTraceServiceRequest]]
) -> None:
    url, got = collector
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
    with (
        running() as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, tmp_path, env=env),
        Client(database_url, redis_url) as client,
    ):
        token = trace.GIVEN.set(PARENT)
        job_id = client.submit(intent="extraction", prompt="CANARY-PROMPT")
        trace.GIVEN.reset(token)
        client.result(job_id, timeout_s=120)
    # The workers were stopped: what was not sent yet is sent then.
    arrived = [
        span for request in got for one in request.resource_spans for part in one.scope_spans for span in part.spans
    ]

    assert sorted(span.name for span in arrived) == ["chat claude-haiku-5-5", "waybill.job"]
    assert {span.trace_id.hex() for span in arrived} == {PARENT.split("-")[1]}
    job = next(span for span in arrived if span.name == "waybill.job")
    assert job.parent_span_id.hex() == PARENT.split("-")[2]
    assert b"CANARY" not in b"".join(request.SerializeToString() for request in got)
