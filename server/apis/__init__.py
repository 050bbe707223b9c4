"""One folder for each API: its bodies (protocol), its addresses (routes), and how a turn is written (format)."""
