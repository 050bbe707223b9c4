"""/v1/sessions/{id}/ingest: text of any size into a history."""
