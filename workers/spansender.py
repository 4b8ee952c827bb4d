"""Sends spans to an OTLP collector over HTTP, from a thread of its own: a collector that is away costs spans and nothing else."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from workers import otlp
from workers.telemetry import emit

EVERY_S: Final = 2.0
BATCH: Final = 512
MOST: Final = 16_384
"""Spans that wait at most, some 10 MB; the oldest are given up for new ones."""
CLOSE_WITHIN_S: Final = 5.0


class SpanSender:
    """One per process; begins to send at once."""

    def __init__(self, export: Callable[[bytes], bool], *, worker: str, end: Callable[[], None] = lambda: None) -> None:
        """Sends in batches until it is closed.

        Args:
            export: Delivers one ExportTraceServiceRequest, trying as long as it thinks right; whether it arrived.
            worker: The process, as the resource names it.
            end: Makes an `export` that is under way give up.
        """
        self._export = export
        self._end = end
        self._resource = {"service.name": "waybill", "service.instance.id": worker}
        self._spans: deque[bytes] = deque(maxlen=MOST)
        self._lost = 0
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    @classmethod
    def to_collector(cls, worker: str) -> SpanSender:
        """Where OpenTelemetry's own variables say, with their headers, certificates, compression and time-outs."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        # The exporter's public door takes span objects and encodes them for 110 us an attempt; behind it is a client that
        # takes bytes. It is private, the version is locked, and a test sees spans arrive at a receiver.
        client = OTLPSpanExporter()._client
        return cls(lambda data: client.export(data).success, worker=worker, end=client.shutdown)

    def post(self, span: bytes) -> None:
        """Send a span soon. From one thread only."""
        if len(self._spans) == MOST:
            self._lost += 1
        self._spans.append(span)
        if len(self._spans) >= BATCH:
            self._due.set()

    def close(self) -> None:
        """Send what is left, within seconds."""
        self._closing = True
        self._due.set()
        self._thread.join(CLOSE_WITHIN_S)
        self._end()

    def _run(self) -> None:
        while True:
            self._due.wait(EVERY_S)
            self._due.clear()
            closing = self._closing
            while self._spans:
                batch = [self._spans.popleft() for _ in range(min(BATCH, len(self._spans)))]
                if not self._export(otlp.request(batch, resource=self._resource, scope="waybill")):
                    self._lost += len(batch)
            if self._lost:
                lost, self._lost = self._lost, 0
                emit("spans.lost", spans=lost)
            if closing:
                return
