"""Grammars that replies must follow: JSON of a schema, and calls of tools. The library for it is llguidance."""
