"""A session as one file: written, checked and read back (docs/export-format.md)."""
