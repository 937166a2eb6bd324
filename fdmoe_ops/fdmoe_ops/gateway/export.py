"""Spans to a collector: OTLP over HTTP, from a thread of OpenTelemetry's own, never in a request's way.

    ended spans -> a queue of 2048 -> a thread that sends up to 512 at a time -> the collector

What does not fit the queue is dropped, and so is what the collector does not take: it is logged when that begins and
when it is over. The queue's numbers, headers, certificates, timeout and compression are those of the environment
variables OTEL_BSP_*, OTEL_EXPORTER_OTLP_TRACES_* and OTEL_EXPORTER_OTLP_*; the resource's attributes those of
OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

_SDK_LOGGER = "opentelemetry"


class Export:
    """`tracer` makes spans that are sent to `url`."""

    def __init__(self, url: str, version: str) -> None:
        own = Resource({SERVICE_NAME: "fdmoe-gateway", SERVICE_VERSION: version})
        self._provider = TracerProvider(
            # who is traced has been decided before a span is made
            sampler=ALWAYS_ON,
            resource=Resource.create().merge(own).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._exporter = _Told(OTLPSpanExporter(endpoint=url), url)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self.tracer: Tracer = self._provider.get_tracer("fdmoe_ops.gateway", version)

    def close(self, timeout_s: float) -> None:
        """Send what there is, and return after so long in any case: the SDK itself would wait for half a minute."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if thread.is_alive():
            # its pauses between tries end with this
            self._exporter.shutdown()


class _Told(SpanExporter):
    """The exporter, with a line when the collector is lost and one when it is back; the SDK has one for each batch."""

    def __init__(self, exporter: SpanExporter, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._lost = 0
        self._log = structlog.get_logger("fdmoe.gateway")
        self._reason = _LastWords()
        logger = logging.getLogger(_SDK_LOGGER)
        logger.propagate = False
        logger.handlers = [self._reason]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                self._log.warning("traces_lost", url=self._url, reason=self._reason.text)
            self._lost += len(spans)
        elif self._lost:
            self._log.info("traces_again", url=self._url, lost=self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _LastWords(logging.Handler):
    """What the SDK said last, which is why an export failed."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:500]
