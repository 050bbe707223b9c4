"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients speak."""
