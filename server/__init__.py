"""The server around mc_core: HTTP, stores, telemetry, command line."""
