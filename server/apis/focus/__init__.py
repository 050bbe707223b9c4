"""/v1/sessions/{id}/focus and .../text: what the model sees of a history, live, and what it is to keep in view."""
