"""Whether OTLP is wanted, by OpenTelemetry's own variables."""

from __future__ import annotations

import os
from typing import Literal

Signal = Literal["traces", "metrics"]


def endpoint(signal: Signal) -> str | None:
    """Where a signal goes; None when no endpoint is set, or OTEL_SDK_DISABLED or OTEL_<SIGNAL>_EXPORTER is against."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporters = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
    if exporters and "otlp" not in exporters.split(","):
        return None
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    return own or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or None
