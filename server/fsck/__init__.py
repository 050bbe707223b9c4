"""Checks a store that no server uses, and mends what can be mended (``megacontext fsck``)."""
