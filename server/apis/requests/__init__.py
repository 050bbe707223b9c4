"""POST /v1/requests/cancel."""
