"""The resumable trainer of the bundled base model."""
