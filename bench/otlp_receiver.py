"""An OTLP collector of its own process for benchmarks: it takes what comes over gRPC and counts it.

Prints the port that it listens on; at each line on stdin it prints what it has: {"spans": ..., "chats": ..., ...}.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def Export(self, request: Any, context: Any) -> Any:
        spans = [span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans]
        self._counts["spans"] += len(spans)
        self._counts["chats"] += sum(span.name.startswith("chat ") for span in spans)
        self._counts["bytes"] += request.ByteSize()
        return trace_service_pb2.ExportTraceServiceResponse()


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def Export(self, request: Any, context: Any) -> Any:
        self._counts["pushes"] += 1
        self._counts["bytes"] += request.ByteSize()
        return metrics_service_pb2.ExportMetricsServiceResponse()


def main() -> None:
    counts: Counter[str] = Counter(spans=0, chats=0, pushes=0, bytes=0)
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(counts), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(counts), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    for _ in sys.stdin:
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
