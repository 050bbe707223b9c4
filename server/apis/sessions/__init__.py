"""/v1/sessions: histories of any length."""
