"""An OTLP receiver: a real gRPC or HTTP server that keeps the protobuf messages it is sent, and their raw bytes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MESSAGES = {"/v1/traces": trace_pb.ExportTraceServiceRequest, "/v1/metrics": metrics_pb.ExportMetricsServiceRequest}


class Received:
    """All that came so far. ``refuse``: answer that the message was not taken."""

    def __init__(self) -> None:
        self.endpoint, self.protocol = "", ""
        self.traces: list[trace_pb.ExportTraceServiceRequest] = []
        self.metrics: list[metrics_pb.ExportMetricsServiceRequest] = []
        self.raw: list[bytes] = []
        self.refuse = False
        self._lock = threading.Lock()

    def add(self, message: object, raw: bytes) -> None:
        with self._lock:
            kind = self.traces if isinstance(message, trace_pb.ExportTraceServiceRequest) else self.metrics
            kind.append(message)  # type: ignore[arg-type]
            self.raw.append(raw)

    @property
    def environment(self) -> dict[str, str]:
        """What sends a server's telemetry here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
        }

    def spans(self) -> list[Span]:
        """Every span, in the order of their starts."""
        found = [
            span
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def latest(self) -> dict[str, Metric]:
        """The metrics of the last message, by name."""
        resources = self.metrics[-1].resource_metrics
        return {metric.name: metric for r in resources for scope in r.scope_metrics for metric in scope.metrics}


def plain(value: AnyValue) -> object:
    """A protobuf value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes(holder: object) -> dict[str, object]:
    """Of a span, a resource or a data point."""
    return {pair.key: plain(pair.value) for pair in holder.attributes}  # type: ignore[attr-defined]


@contextmanager
def receiving(protocol: str, port: int = 0) -> Iterator[Received]:
    """Listen on a free port (or on ``port``) for "grpc" or "http/protobuf"."""
    received = Received()
    received.protocol = protocol
    with (_grpc if protocol == "grpc" else _http)(received, port) as bound:
        received.endpoint = f"http://127.0.0.1:{bound}"
        yield received


@contextmanager
def _grpc(received: Received, port: int) -> Iterator[int]:
    def export(answer: type) -> object:
        class Servicer(trace_grpc.TraceServiceServicer, metrics_grpc.MetricsServiceServicer):
            def Export(self, request: object, context: grpc.ServicerContext) -> object:
                if received.refuse:
                    context.abort(grpc.StatusCode.PERMISSION_DENIED, "not from you")
                received.add(request, request.SerializeToString())  # type: ignore[attr-defined]
                return answer()

        return Servicer()

    server = grpc.server(ThreadPoolExecutor(4))
    trace_grpc.add_TraceServiceServicer_to_server(export(trace_pb.ExportTraceServiceResponse), server)
    metrics_grpc.add_MetricsServiceServicer_to_server(export(metrics_pb.ExportMetricsServiceResponse), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(0).wait()


@contextmanager
def _http(received: Received, port: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            if not received.refuse:
                message = MESSAGES[self.path]()
                message.ParseFromString(raw)
                received.add(message, raw)
            self.send_response(403 if received.refuse else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
