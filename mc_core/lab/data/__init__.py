"""Text to learn from: corpora, token streams, the chat format of the bundled base."""
