"""Requests that are carried out once, however often their client sends them: those with an Idempotency-Key."""
