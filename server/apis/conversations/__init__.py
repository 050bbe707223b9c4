"""/v1/conversations: sessions, as OpenAI's clients see them: lists of items."""
